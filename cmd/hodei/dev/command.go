package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"

	"hodei.dev/cmd/hodei/internal/cli"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
)

// Command is `hodei dev`.
func Command() *cobra.Command {
	var file string
	flags := Default()
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "run the whole platform in this process, until Ctrl-C",
		Long: "dev runs all services in this process, with an embedded NATS server and a private Postgres (on a unix socket only).\n\n" +
			"What it keeps is in --data-dir and survives kill -9: start it again and jobs go on. Ctrl-C or SIGTERM stops it cleanly: intake\n" +
			"stops, running jobs are ended and queued again, nothing is left running. Flags win over HODEI_* variables, these over --config.",
		Example: "  hodei dev\n  hodei dev --data-dir /tmp/try --listen 127.0.0.1:9000 --workers 8 --jobs-per-worker 0",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd, file, flags)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(400) // the services hold little and allocate much
			}
			otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "hodei: telemetry:", err) }))
			err = Run(cmd.Context(), cfg, cmd.ErrOrStderr())
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "config", "", "read the configuration from `FILE` (YAML: data_dir, listen, workers, ...)")
	f.StringVar(&flags.DataDir, "data-dir", "", "keep everything in `DIR` (default: hodei in the data home, $XDG_DATA_HOME or ~/.local/share)")
	f.StringVar(&flags.PostgresURL, "postgres", "", "use the Postgres at `URL` instead of a private one")
	f.StringVar(&flags.NATSURL, "nats", "", "use the NATS server at `URL` instead of the embedded one")
	f.StringVar(&flags.NATSListen, "nats-listen", "", "open the embedded NATS server at `ADDRESS` (default: no port)")
	f.StringVar(&flags.Listen, "listen", flags.Listen, "serve clients at `ADDRESS`")
	f.BoolVar(&flags.Insecure, "insecure", false, "serve clients, who are not authenticated yet, on an address that other machines reach")
	f.StringVar(&flags.AgentListen, "agent-listen", "", "serve agents at `ADDRESS` (default: "+DefaultAgentListen+" with the default --listen, else a free port, remembered)")
	f.IntVar(&flags.Workers, "workers", flags.Workers, "at most `N` workers at once")
	f.IntVar(&flags.JobsPerWorker, "jobs-per-worker", flags.JobsPerWorker, "a worker ends after `M` jobs; 0 = never")
	f.IntVar(&flags.MinIdle, "min-idle", 0, "keep `N` workers ready")
	f.StringVar(&flags.RunAs, "run-as", "", "run jobs as `USER` when hodei runs as root (default: an unprivileged one)")
	f.StringVar(&flags.AgentBinary, "agent", "", "the program hodei-agent is `FILE` (default: beside this program, else in PATH)")
	f.StringVar(&flags.LogLevel, "log-level", flags.LogLevel, "log from `LEVEL` on: debug, info, warn or error")
	f.StringVar(&flags.LogFormat, "log-format", flags.LogFormat, "log as `FORMAT`: text or json")
	return cmd
}

// load lays the flags that were given over the file and the environment.
func load(cmd *cobra.Command, file string, flags Config) (Config, error) {
	cfg := Default()
	environ := os.Environ()
	if err := config.Load(&cfg, file, environ); err != nil {
		return cfg, cli.Usage("%v", err)
	}
	given := map[string]func(){
		"data-dir": func() { cfg.DataDir = flags.DataDir }, "postgres": func() { cfg.PostgresURL = flags.PostgresURL },
		"nats": func() { cfg.NATSURL = flags.NATSURL }, "nats-listen": func() { cfg.NATSListen = flags.NATSListen },
		"listen": func() { cfg.Listen = flags.Listen }, "agent-listen": func() { cfg.AgentListen = flags.AgentListen },
		"insecure": func() { cfg.Insecure = flags.Insecure },
		"workers":  func() { cfg.Workers = flags.Workers }, "jobs-per-worker": func() { cfg.JobsPerWorker = flags.JobsPerWorker },
		"min-idle": func() { cfg.MinIdle = flags.MinIdle }, "run-as": func() { cfg.RunAs = flags.RunAs },
		"agent": func() { cfg.AgentBinary = flags.AgentBinary }, "log-level": func() { cfg.LogLevel = flags.LogLevel },
		"log-format": func() { cfg.LogFormat = flags.LogFormat },
	}
	for name, set := range given {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	if err := cfg.Validate(); err != nil {
		return cfg, cli.Usage("%v", err)
	}
	return cfg, nil
}

// MigrateCommand is `hodei migrate`.
func MigrateCommand() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "bring the database of the event log and of all services up to date",
		Long: "migrate applies what is missing to the schemas of the event log and of every service, under a lock, as the owner of the\n" +
			"database. It may be run at any time and by several processes at once; a schema that is newer is left as it is.",
		Example: "  hodei migrate --postgres postgres://hodei@db:5432/hodei",
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				url = os.Getenv("HODEI_POSTGRES_URL")
			}
			if url == "" {
				return cli.Usage("which database? give --postgres URL or set HODEI_POSTGRES_URL")
			}
			for _, s := range schemas() {
				if err := s.migrate(cmd.Context(), url); err != nil {
					return fault.Wrap(fault.KindOf(err), err, "migrate %s", s.service)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "hodei: %s is up to date\n", s.service)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&url, "postgres", "", "the database is at `URL` (HODEI_POSTGRES_URL)")
	return cmd
}
