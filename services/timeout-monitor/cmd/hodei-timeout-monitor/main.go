// Command hodei-timeout-monitor recovers jobs and workers that stay too long in a state.
package main

import (
	"hodei.dev/libs/platform/process"
	timeoutmonitor "hodei.dev/services/timeout-monitor"
)

func main() { process.Main(timeoutmonitor.Service()) }
