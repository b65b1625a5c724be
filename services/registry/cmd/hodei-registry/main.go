// Command hodei-registry runs the registry: the agents' door, the life of workers
// and the output of jobs.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/registry"
)

func main() { process.Main(registry.Service()) }
