package dev

import (
	"net"
	"net/url"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/services/gateway"
	"hodei.dev/services/provisioner"
)

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
	switch {
	case c.Listen == "":
		wrong.Add("listen", "is required, such as %s", gateway.DefaultListen)
	case strings.HasPrefix(c.Listen, "unix:///"):
	case !hostPort(c.Listen):
		wrong.Add("listen", "%q: write it like %s or unix:///path", c.Listen, gateway.DefaultListen)
	case !config.Loopback(c.Listen) && !c.Insecure:
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
	c.validatePrograms(&wrong)
	c.validateAddresses(&wrong)
	return wrong.Err("the configuration")
}

func (c *Config) validatePrograms(wrong *fault.Fields) {
	if c.AgentBinary != "" {
		if _, err := exec.LookPath(c.AgentBinary); err != nil {
			wrong.Add("agent_binary", "%v", err)
		}
	}
	if name, _, _ := strings.Cut(c.RunAs, ":"); name != "" {
		if _, err := user.Lookup(name); err != nil && !numeric(name) {
			wrong.Add("run_as", "there is no user %q on this machine", name)
		}
	}
	if levels := []string{"debug", "info", "warn", "error"}; !slices.Contains(levels, c.LogLevel) {
		wrong.Add("log_level", "%q: one of %s", c.LogLevel, strings.Join(levels, ", "))
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		wrong.Add("log_format", "%q: text or json", c.LogFormat)
	}
}

func (c *Config) validateAddresses(wrong *fault.Fields) {
	if c.AgentListen != "" && !hostPort(c.AgentListen) {
		wrong.Add("agent_listen", "%q: write it like %s; without it a port is found", c.AgentListen, DefaultAgentListen)
	}
	if c.NATSListen != "" && !hostPort(c.NATSListen) {
		wrong.Add("nats_listen", "%q: write it like 127.0.0.1:4222", c.NATSListen)
	}
	if c.PostgresURL != "" {
		// The parser's own words are for those who know its parts, and may quote a password.
		if _, err := pgx.ParseConfig(c.PostgresURL); err != nil {
			wrong.Add("postgres_url", "write it like postgres://user@host:5432/hodei")
		}
	}
	for server := range strings.SplitSeq(c.NATSURL, ",") {
		if u, err := url.Parse(strings.TrimSpace(server)); c.NATSURL != "" && (err != nil || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) || u.Host == "") {
			wrong.Add("nats_url", "write it like nats://127.0.0.1:4222, several with commas between them")
		}
	}
	if c.NATSURL != "" && c.NATSListen != "" {
		wrong.Add("nats_listen", "there is no embedded server to open when nats_url is given")
	}
}

// hostPort tells whether addr names a port, by number and not 0: an address that
// was found once is not the same the next time.
func hostPort(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	n, numErr := strconv.ParseUint(port, 10, 16)
	return err == nil && numErr == nil && n > 0
}

func numeric(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// providers is the one provider that a platform in one process has from the start.
func (c *Config) providers() []provisioner.ProviderSpec {
	return []provisioner.ProviderSpec{{
		Name: "local", Kind: "process", MaxWorkers: c.Workers, JobsPerWorker: &c.JobsPerWorker, MinIdle: c.MinIdle,
	}}
}
