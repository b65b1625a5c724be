// Command hodei-audit runs the audit: it keeps every event and answers who did
// what, when and why.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/audit"
)

func main() { process.Main(audit.Service()) }
