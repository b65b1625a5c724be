package config

import (
	"net"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Common is what every service's configuration embeds. Fields that a service does
// not use stay empty; a service says in Validate which it cannot do without
// ([Common.Require]).
type Common struct {
	// PostgresURL is the database that holds the truth, such as
	// "postgres://hodei@db:5432/hodei". Secret. No default.
	PostgresURL string `yaml:"postgres_url" env:"HODEI_POSTGRES_URL" secret:"true"`
	// NATSURL is the NATS server, or several separated by commas, such as
	// "nats://nats:4222". Secret, since it may hold a token. No default.
	NATSURL string `yaml:"nats_url" env:"HODEI_NATS_URL" secret:"true"`
	// Listen is where gRPC is served: "host:port" (port 0 = any free one) or
	// "unix:///path". Empty = the service has no gRPC door.
	Listen string `yaml:"listen" env:"HODEI_LISTEN"`
	// Insecure accepts that whoever reaches Listen may do anything: clients are not
	// authenticated yet, so an address that is not loopback or a unix socket is
	// refused without it. Default false; the flag --insecure.
	Insecure bool `yaml:"insecure" env:"HODEI_INSECURE"`
	// HealthListen is where /healthz, /readyz and /metrics are served over HTTP:
	// "host:port". Empty = not at all.
	HealthListen string `yaml:"health_listen" env:"HODEI_HEALTH_LISTEN"`
	// LogLevel is the least level that is logged: debug, info, warn or error.
	// Default info.
	LogLevel string `yaml:"log_level" env:"HODEI_LOG_LEVEL"`
	// LogFormat is json or text. Default json.
	LogFormat string `yaml:"log_format" env:"HODEI_LOG_FORMAT"`
	// ShutdownGrace is how long the parts of the process may take to stop, all
	// together, before it ends with an error that names those still running.
	// Default 20s; "none" waits for ever.
	ShutdownGrace Duration `yaml:"shutdown_grace" env:"HODEI_SHUTDOWN_GRACE"`
}

// DefaultCommon returns the defaults: JSON logs at info, a grace of 20 s, no
// addresses.
func DefaultCommon() Common {
	return Common{LogLevel: "info", LogFormat: "json", ShutdownGrace: Duration(20 * time.Second)}
}

// CommonConfig returns c: by it a struct that embeds Common gives access to it.
func (c *Common) CommonConfig() *Common { return c }

// Validate reports every field of the common part that is malformed. Load asks it
// by itself, also where the struct around it has a Validate of its own.
func (c *Common) Validate() error {
	var wrong fault.Fields
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		wrong.Add("log_level", "%q must be debug, info, warn or error", c.LogLevel)
	}
	if c.LogFormat != "json" && c.LogFormat != "text" {
		wrong.Add("log_format", "%q must be json or text", c.LogFormat)
	}
	if c.ShutdownGrace <= 0 {
		wrong.Add("shutdown_grace", "must be more than zero")
	}
	if c.Listen != "" && !strings.HasPrefix(c.Listen, "unix:///") && !hostPort(c.Listen) {
		wrong.Add("listen", `%q must be "host:port" or "unix:///path"`, c.Listen)
	}
	if c.Listen != "" && !strings.HasPrefix(c.Listen, "unix:///") && !Loopback(c.Listen) && !c.Insecure {
		wrong.Add("listen", "%q can be reached from other machines and clients are not authenticated: "+
			"use a loopback address, or accept that with --insecure (insecure: true, HODEI_INSECURE=true)", c.Listen)
	}
	if c.HealthListen != "" && !hostPort(c.HealthListen) {
		wrong.Add("health_listen", `%q must be "host:port"`, c.HealthListen)
	}
	return wrong.Err("the common configuration")
}

// Loopback reports whether "host:port" can be reached from this machine alone.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func hostPort(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	return err == nil && port != ""
}

// Require returns a field for each of the named keys that is empty: postgres_url,
// nats_url, listen or health_listen. For use in a service's Validate.
func (c *Common) Require(keys ...string) fault.Fields {
	values := map[string]string{
		"postgres_url": c.PostgresURL, "nats_url": c.NATSURL, "listen": c.Listen, "health_listen": c.HealthListen,
	}
	var missing fault.Fields
	for _, key := range keys {
		if values[key] == "" {
			missing.Add(key, "is required: set the key or the variable HODEI_%s", strings.ToUpper(key))
		}
	}
	return missing
}
