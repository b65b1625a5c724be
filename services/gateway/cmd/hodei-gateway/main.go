// Command hodei-gateway is the clients' one door.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/gateway"
)

func main() { process.Main(gateway.Service()) }
