// Command hodei-provisioner makes workers on providers and ends them.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/provisioner"
)

func main() { process.Main(provisioner.Service()) }
