// Package dev runs the whole platform in one process: the eight services, an
// embedded NATS server and a private Postgres. It is the same services with the
// same contracts as on many machines; only their addresses are sockets.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/services/gateway"
	"hodei.dev/services/provisioner"
)

// DefaultAgentListen is where agents dial in, where the clients' door is the default too.
const DefaultAgentListen = "127.0.0.1:7434"

// stopGrace is how long the whole process may take to stop: running jobs get
// their kill grace first.
const stopGrace = 30 * time.Second

// Config is what `hodei dev` can be told, by flags or a file.
type Config struct {
	// DataDir holds everything that survives; default hodei in the user's data home.
	DataDir string `yaml:"data_dir" env:"HODEI_DATA_DIR"`
	// PostgresURL uses a server of yours instead of a private one.
	PostgresURL string `yaml:"postgres_url" env:"HODEI_POSTGRES_URL" secret:"true"`
	// NATSURL uses a server of yours instead of the embedded one.
	NATSURL string `yaml:"nats_url" env:"HODEI_NATS_URL" secret:"true"`
	// NATSListen opens a port of the embedded server, such as 127.0.0.1:4222; default none.
	NATSListen string `yaml:"nats_listen" env:"HODEI_NATS_LISTEN"`
	// Listen is the clients' door; default 127.0.0.1:7433.
	Listen string `yaml:"listen" env:"HODEI_LISTEN"`
	// Insecure accepts a Listen that other machines reach, although clients are not authenticated yet.
	Insecure bool `yaml:"insecure" env:"HODEI_INSECURE"`
	// AgentListen is the agents' door; default 127.0.0.1:7434 with the default Listen, else a free port that is remembered.
	AgentListen string `yaml:"agent_listen" env:"HODEI_AGENT_LISTEN"`
	// Workers is how many workers the provider "local" has at most; default twice the CPUs.
	Workers int `yaml:"workers"`
	// JobsPerWorker is after how many jobs a worker ends; default 1, 0 = never.
	JobsPerWorker int `yaml:"jobs_per_worker"`
	// MinIdle workers are kept ready; default 0.
	MinIdle int `yaml:"min_idle"`
	// RunAs is the user that jobs run as when hodei runs as root; default an unprivileged one.
	RunAs string `yaml:"run_as"`
	// AgentBinary is the program hodei-agent; default beside this one, else in PATH.
	AgentBinary string `yaml:"agent_binary"`
	// LogLevel of the services on stderr: debug, info, warn, error; default warn.
	LogLevel string `yaml:"log_level" env:"HODEI_LOG_LEVEL"`
	// LogFormat is text or json; default text.
	LogFormat string `yaml:"log_format" env:"HODEI_LOG_FORMAT"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Listen: gateway.DefaultListen, Workers: 2 * runtime.NumCPU(), JobsPerWorker: 1, LogLevel: "warn", LogFormat: "text"}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	var wrong fault.Fields
	if c.Listen == "" {
		wrong.Add("listen", "is required, such as %s", gateway.DefaultListen)
	}
	if c.Listen != "" && !strings.HasPrefix(c.Listen, "unix:///") && !config.Loopback(c.Listen) && !c.Insecure {
		wrong.Add("listen", "%q can be reached from other machines and clients are not authenticated: use a loopback address, or accept that with --insecure", c.Listen)
	}
	if c.Workers < 1 {
		wrong.Add("workers", "%d: at least 1", c.Workers)
	}
	if c.JobsPerWorker < 0 {
		wrong.Add("jobs_per_worker", "%d: 1 or more, or 0 for unlimited", c.JobsPerWorker)
	}
	if c.MinIdle < 0 || c.MinIdle > c.Workers {
		wrong.Add("min_idle", "%d: from 0 to workers (%d)", c.MinIdle, c.Workers)
	}
	if c.NATSURL != "" && c.NATSListen != "" {
		wrong.Add("nats_listen", "there is no embedded server to open when nats_url is given")
	}
	return wrong.Err("the configuration")
}

// Run runs the platform until ctx ends, and says on out when it is ready.
//
//	hodei dev ─┬─ postgres (a child, unix socket only)     data-dir/postgres
//	           ├─ NATS with JetStream (in this process)    data-dir/nats
//	           ├─ relay audit registry timeout-monitor provisioner dispatcher scheduler
//	           └─ gateway ◀── clients :7433      registry ◀── agents :7434
func Run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	if cfg.DataDir == "" {
		if cfg.DataDir, err = DefaultDataDir(); err != nil {
			return err
		}
	}
	data, err := openData(cfg.DataDir)
	if err != nil {
		return err
	}
	defer data.close()
	agentListen, err := data.agentListen(cfg.AgentListen, cfg.Listen == gateway.DefaultListen)
	if err != nil {
		return err
	}
	tel, err := telemetry.Setup(ctx, telemetry.Options{Service: "dev", Version: process.Version(), LogLevel: cfg.LogLevel, LogFormat: cfg.LogFormat, LogWriter: os.Stderr})
	if err != nil {
		return err
	}
	g := &ground{cfg: cfg, log: tel.Log, logs: os.Stderr, grace: stopGrace, natsURL: cfg.NATSURL}
	began := time.Now()
	url, stopPostgres, err := openPostgres(ctx, cfg, data, tel.Log)
	if err != nil {
		return err
	}
	g.postgres = url
	defer func() { err = errors.Join(err, within(10*time.Second, stopPostgres)) }()
	if cfg.NATSURL == "" {
		nats, err := openNATS(cfg, data)
		if err != nil {
			return err
		}
		g.nats = nats
		defer func() {
			nats.Shutdown()
			nats.WaitForShutdown()
		}()
	}
	if g.sockets, err = os.MkdirTemp("/tmp", "hodei-"); err != nil {
		return fmt.Errorf("make the sockets' directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(g.sockets)) }()
	f, err := assemble(ctx, g, data, agentListen)
	if err != nil {
		return err
	}
	for _, close := range f.close {
		defer func() { err = errors.Join(err, within(time.Second, close)) }()
	}
	announce := lifecycle.Part{Name: "announcement", Run: func(ctx context.Context) error {
		if err := waitReady(ctx, cfg.Listen, f.health); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		fmt.Fprintf(out, "hodei is ready after %s: clients %s, agents %s, data %s\ntry: hodei run -- echo hello\n",
			time.Since(began).Round(10*time.Millisecond), cfg.Listen, agentListen, data.path)
		<-ctx.Done()
		fmt.Fprintln(out, "hodei is stopping: intake first, then running jobs are ended and queued again")
		return nil
	}}
	return lifecycle.Run(ctx, 2*stopGrace, tel.Log, append(f.parts, announce)...)
}

func within(d time.Duration, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return stop(ctx)
}

// providers is the one provider that a platform in one process has from the start.
func (c *Config) providers() []provisioner.ProviderSpec {
	return []provisioner.ProviderSpec{{
		Name: "local", Kind: "process", MaxWorkers: c.Workers, JobsPerWorker: &c.JobsPerWorker, MinIdle: c.MinIdle,
	}}
}
