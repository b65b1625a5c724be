// Command hodei-scheduler runs the scheduler: it takes jobs and answers for them.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/scheduler"
)

func main() { process.Main(scheduler.Service()) }
