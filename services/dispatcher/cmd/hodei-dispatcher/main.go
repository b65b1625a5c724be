// Command hodei-dispatcher decides which job runs where.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/dispatcher"
)

func main() { process.Main(dispatcher.Service()) }
