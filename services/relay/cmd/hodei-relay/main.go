// Command hodei-relay carries the event log from Postgres to JetStream.
package main

import (
	"hodei.dev/libs/platform/process"
	"hodei.dev/services/relay"
)

func main() { process.Main(relay.Service()) }
