// Command hodei is the command line of the platform: it queues jobs, follows them
// and answers what became of them; see `hodei --help`.
package main

import (
	"os"

	"hodei.dev/cmd/hodei/dev"
	"hodei.dev/cmd/hodei/internal/cli"
)

func main() {
	os.Exit(cli.Main(dev.Command(), dev.MigrateCommand()))
}
