// Package external is the provider whose workers are started by somebody else: an
// operator, a scheduler of another system. It makes nothing and can kill nothing;
// it knows from the log what the workers' agents said, and otherwise that an agent
// without its lease ends what it runs.
package external

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/services/provisioner/internal/app"
)

// margin is added to lease and kill grace: for clocks, and for an agent on a busy
// machine.
const margin = 5 * time.Second

// Fence is how long after its worker was given up an agent may still run something:
// its session may renew the lease until registry looks whether the worker lives.
const Fence = deadline.SessionCheck + deadline.Lease + deadline.KillGrace + margin

// Config says what the provider knows its workers by.
type Config struct {
	// Fate reads what the log says of a worker's agent. Required.
	Fate func(ctx context.Context, workerID string) (app.Fate, error)
	// Fence replaces the constant of that name where it is not 0.
	Fence time.Duration
}

// Provider implements app.Provider. Safe for concurrent use.
type Provider struct{ cfg Config }

// New returns the provider.
func New(cfg Config) *Provider {
	if cfg.Fence == 0 {
		cfg.Fence = Fence
	}
	return &Provider{cfg}
}

// Create makes nothing: the resource is pending until the worker's agent has
// registered.
func (p *Provider) Create(ctx context.Context, w app.WorkerSpec) (app.Resource, error) {
	f, err := p.cfg.Fate(ctx, w.WorkerID)
	if err != nil {
		return app.Resource{}, err
	}
	return app.Resource{WorkerID: w.WorkerID, Name: "external/" + w.WorkerID, Pending: !f.Registered}, nil
}

// Destroy returns nil when the worker's agent never came, has said goodbye, or must
// have ended what it ran because its lease ran out. It waits for that; it sees a
// goodbye when it is called again.
func (p *Provider) Destroy(ctx context.Context, workerID string) error {
	f, err := p.cfg.Fate(ctx, workerID)
	if err != nil {
		return err
	}
	if !f.Registered || f.Goodbye {
		return nil
	}
	if f.Condemned.IsZero() {
		return fault.New(fault.Precondition, "worker %s is not given up: its agent goes on", workerID)
	}
	wait := time.NewTimer(time.Until(f.Condemned.Add(p.cfg.Fence)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the lease of worker %s: %w", workerID, ctx.Err())
	}
}

// List knows nothing; the provider has no inventory.
func (p *Provider) List(context.Context) ([]app.Resource, error) { return nil, nil }

// Watch sees nothing; the log tells what there is to know.
func (p *Provider) Watch(ctx context.Context, _ func(app.Gone)) error {
	<-ctx.Done()
	return nil
}

// Health is always well: there is nothing of its own that could be ill.
func (p *Provider) Health(context.Context) error { return nil }

// Capabilities declares the lease as the fence (R5.6).
func (p *Provider) Capabilities() app.Capabilities {
	return app.Capabilities{Capabilities: provider.Capabilities{Isolation: "external", LeaseFence: true}}
}

// Accepts refuses what only the one who starts the agent can say.
func (p *Provider) Accepts(s provider.Spec) error {
	var wrong fault.Fields
	if s.RunAs != "" {
		wrong.Add("run_as", "%q: whoever starts the agents decides as whom their jobs run", s.RunAs)
	}
	if len(s.Config) > 0 {
		wrong.Add("config", "an external provider has no options")
	}
	return wrong.Err("the provider")
}
