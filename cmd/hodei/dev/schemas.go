package dev

import (
	"context"

	"hodei.dev/libs/platform/process"
	"hodei.dev/services/audit"
	"hodei.dev/services/dispatcher"
	"hodei.dev/services/provisioner"
	"hodei.dev/services/registry"
	"hodei.dev/services/relay"
	"hodei.dev/services/scheduler"
	timeoutmonitor "hodei.dev/services/timeout-monitor"
)

// schema is a service's part of the database.
type schema struct {
	service string
	migrate func(ctx context.Context, url string) error
}

// schemas lists what `hodei migrate` brings up to date: each service by its own
// migrate, the event log with the first.
func schemas() []schema {
	return []schema{
		schemaOf(relay.Service(), func(c *relay.Config, url string) { c.PostgresURL = url }),
		schemaOf(scheduler.Service(), func(c *scheduler.Config, url string) { c.PostgresURL = url }),
		schemaOf(dispatcher.Service(), func(c *dispatcher.Config, url string) { c.PostgresURL = url }),
		schemaOf(registry.Service(), func(c *registry.Config, url string) { c.PostgresURL = url }),
		schemaOf(provisioner.Service(), func(c *provisioner.Config, url string) { c.PostgresURL = url }),
		schemaOf(timeoutmonitor.Service(), func(c *timeoutmonitor.Config, url string) { c.PostgresURL = url }),
		schemaOf(audit.Service(), func(c *audit.Config, url string) { c.PostgresURL = url }),
	}
}

func schemaOf[C any](s process.Service[C], at func(c *C, url string)) schema {
	return schema{service: s.Name, migrate: func(ctx context.Context, url string) error {
		cfg := s.Default()
		at(&cfg, url)
		return s.Migrate(ctx, cfg)
	}}
}
