package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
)

// Providers is the operators' use cases; it serves on every replica. Its exported
// fields are set once. Safe for concurrent use.
type Providers struct {
	// Log is the event log.
	Log Log
	// Kinds are the providers by kind.
	Kinds map[provider.Kind]Provider
	// Tokens issues what agents register with.
	Tokens Tokens
	// Machine is what a provider has whose capacity is not given.
	Machine Machine
	// NewID makes ids of workers.
	NewID func() string
	// Engine, where it runs in this process, answers from memory.
	Engine *Engine
}

// View is a provider with what it is used for now.
type View struct {
	provider.Provider
	// Circuit guards the making of workers; the zero value where it is closed.
	Circuit circuit.Circuit
	// Workers are those that have not ended, Idle and Busy the parts of them that are
	// READY and that hold a job.
	Workers, Idle, Busy int
	// Reserved is what the jobs on its workers, or waiting for them, have reserved.
	Reserved job.Resources
}

// Complete fills in the defaults of a registration.
func (p *Providers) Complete(s provider.Spec) provider.Spec {
	s.MaxWorkers = cmp.Or(s.MaxWorkers, 2*p.Machine.CPUs)
	s.CPUMillis = cmp.Or(s.CPUMillis, int64(p.Machine.CPUs)*1000)
	s.MemoryBytes = cmp.Or(s.MemoryBytes, p.Machine.MemoryBytes)
	s.IdleTimeout = cmp.Or(s.IdleTimeout, unit.Duration(5*time.Minute))
	s.ScheduledTimeout = cmp.Or(s.ScheduledTimeout, unit.Duration(5*time.Minute))
	return s
}

// Register registers a provider, or updates the one of that name. Defaults are
// filled in. Errors: Invalid naming the fields, AlreadyExists for another kind.
func (p *Providers) Register(ctx context.Context, meta event.Meta, s provider.Spec) (View, error) {
	s = p.Complete(s)
	if err := s.Validate(); err != nil {
		return View{}, err
	}
	kind, ok := p.Kinds[s.Kind]
	if !ok {
		return View{}, fault.New(fault.Precondition, "this provisioner has no provider of kind %s", s.Kind)
	}
	if err := kind.Accepts(s); err != nil {
		return View{}, err
	}
	return p.decide(ctx, provider.ID(s.Name), meta, func(now provider.Provider) ([]provider.Event, error) {
		return now.Register(s, kind.Capabilities().Capabilities, meta.Actor)
	})
}

// Remove has a provider make no more workers; those it has go, busy ones after
// their job.
func (p *Providers) Remove(ctx context.Context, meta event.Meta, name string) (View, error) {
	id, err := p.resolve(ctx, name)
	if err != nil {
		return View{}, err
	}
	return p.decide(ctx, id, meta, func(now provider.Provider) ([]provider.Event, error) { return now.Remove(meta.Actor) })
}

func (p *Providers) decide(ctx context.Context, id string, meta event.Meta, decide func(provider.Provider) ([]provider.Event, error)) (View, error) {
	now, err := decideProvider(ctx, p.Log, id, meta, decide)
	if err != nil {
		return View{}, err
	}
	m, err := p.model(ctx)
	if err != nil {
		return View{}, err
	}
	m.provider(now)
	return p.view(ctx, m, now)
}

// List returns the providers by name.
func (p *Providers) List(ctx context.Context, removed bool) ([]View, error) {
	m, err := p.model(ctx)
	if err != nil {
		return nil, err
	}
	var out []View
	for _, one := range m.allProviders() {
		if one.State == provider.StateRemoved && !removed {
			continue
		}
		v, err := p.view(ctx, m, one)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	return out, nil
}

// Get returns the provider with a name, an id or a unique prefix of an id.
func (p *Providers) Get(ctx context.Context, name string) (View, error) {
	id, err := p.resolve(ctx, name)
	if err != nil {
		return View{}, err
	}
	now, err := aggregate.LoadProvider(ctx, p.Log, id)
	if err != nil {
		return View{}, err
	}
	m, err := p.model(ctx)
	if err != nil {
		return View{}, err
	}
	return p.view(ctx, m, now)
}

// Issued is a worker that its operator is to start.
type Issued struct {
	WorkerID string
	Token    Token
}

// maxTTL is how long a token may be good for: a worker that has not come by then is
// given up.
var maxTTL = deadline.Defaults().WorkerCreating

// Issue makes a worker of an external provider and the token that its agent
// registers with; ttl 0 is the longest. Errors: NotFound, Invalid for ttl,
// Precondition where the provider starts its workers itself or is removed,
// Exhausted where it has its most workers, Unavailable while registry is away.
func (p *Providers) Issue(ctx context.Context, meta event.Meta, name string, ttl time.Duration) (Issued, error) {
	var wrong fault.Fields
	if ttl = cmp.Or(ttl, maxTTL); ttl < time.Second || ttl > maxTTL {
		wrong.Add("ttl", "%s: from 1s to %s, after which a worker that has not come is given up", ttl, maxTTL)
	}
	if err := wrong.Err("the token"); err != nil {
		return Issued{}, err
	}
	v, err := p.Get(ctx, name)
	if err != nil {
		return Issued{}, err
	}
	switch {
	case v.Spec.Kind != provider.External:
		return Issued{}, fault.New(fault.Precondition, "provider %s is of kind %s: it starts its workers itself", v.Spec.Name, v.Spec.Kind).
			WithCode("PROVIDER_NOT_EXTERNAL", "register a provider of kind external")
	case v.State != provider.StateEnabled:
		return Issued{}, fault.New(fault.Precondition, "provider %s is removed", v.Spec.Name)
	case v.Workers >= v.Spec.MaxWorkers:
		return Issued{}, fault.New(fault.Exhausted, "provider %s has %d workers already, its max_workers", v.Spec.Name, v.Workers).
			WithCode("MAX_WORKERS", "end one of them, or register the provider with more")
	}
	w, err := request(ctx, p.Log, meta, p.NewID(), v.Provider, "started by an operator")
	if err != nil {
		return Issued{}, err
	}
	if m := p.Engine.current(); m != nil {
		m.worker(w)
	}
	token, err := p.Tokens.Issue(ctx, w.ID, ttl)
	if err != nil {
		return Issued{}, errors.Join(fmt.Errorf("get the token of worker %s: %w", w.ID, err), p.discard(context.WithoutCancel(ctx), meta, w.ID))
	}
	return Issued{WorkerID: w.ID, Token: token}, nil
}

// discard takes back a worker that nobody can start.
func (p *Providers) discard(ctx context.Context, meta event.Meta, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := decideWorker(ctx, p.Log, id, func(k known) ([]worker.Event, event.Meta, error) {
		if k.State != worker.StateCreating {
			return nil, meta, nil
		}
		facts, err := k.Terminate(worker.CauseProvisioning, "its token could not be issued")
		return facts, meta, err
	})
	return err
}

// resolve finds the id of a provider by its name, its id or a unique prefix of it.
func (p *Providers) resolve(ctx context.Context, name string) (string, error) {
	notFound := fault.New(fault.NotFound, "there is no provider %q", name).
		WithCode("PROVIDER_NOT_FOUND", "list what there is: `hodei provider list`")
	if name == "" {
		var wrong fault.Fields
		wrong.Add("provider", "a name, an id or a unique prefix of an id")
		return "", wrong.Err("the request")
	}
	id := provider.ID(name)
	events, err := p.Log.Load(ctx, aggregate.ProviderStream(id), 0)
	if err != nil {
		return "", fmt.Errorf("look for provider %s: %w", name, err)
	}
	if len(events) > 0 {
		return id, nil
	}
	rows, err := p.Log.FindStreams(ctx, aggregate.ProviderStream("").Type, name, 2)
	switch {
	case errors.Is(err, fault.Invalid):
		return "", notFound // it cannot begin an id
	case err != nil:
		return "", err
	case len(rows) == 0:
		return "", notFound
	case len(rows) > 1:
		return "", fault.New(fault.Invalid, "more than one provider has an id that begins with %q", name).
			WithCode("AMBIGUOUS", "give more of the id, or the name")
	}
	return rows[0].Stream.ID, nil
}

// model is the engine's memory, or the log's content where it runs elsewhere.
func (p *Providers) model(ctx context.Context) (*model, error) {
	if m := p.Engine.current(); m != nil {
		return m, nil
	}
	m := newModel()
	_, err := m.read(ctx, p.Log, p.Engine.Logger)
	return m, err
}

// view counts what a provider is used for.
func (p *Providers) view(ctx context.Context, m *model, of provider.Provider) (View, error) {
	v := View{Provider: of}
	if c, open := m.circuitOf(of.ID); open {
		v.Circuit = c
	}
	for _, w := range m.workersOf(of.ID) {
		v.Workers++
		holds := w.JobID
		switch w.State {
		case worker.StateReady:
			v.Idle++
		case worker.StateBusy, worker.StateDraining:
			v.Busy++
		case worker.StateCreating, worker.StateConnecting:
			holds = w.WaitingJobID
		default:
		}
		r, err := p.reserved(ctx, w, holds)
		if err != nil {
			return v, err
		}
		v.Reserved.CPUMillis += r.CPUMillis
		v.Reserved.MemoryBytes += r.MemoryBytes
	}
	return v, nil
}

// reserved is what a job on a worker, or waiting for it, has reserved.
func (p *Providers) reserved(ctx context.Context, w worker.Worker, jobID string) (job.Resources, error) {
	switch jobID {
	case "":
		return job.Resources{}, nil
	case w.WaitingJobID: // the worker was asked for in its words
		return job.Resources{CPUMillis: w.CPUMillis, MemoryBytes: w.MemoryBytes}, nil
	}
	j, err := aggregate.LoadJob(ctx, p.Log, jobID)
	if errors.Is(err, fault.NotFound) {
		return job.Resources{}, nil
	}
	if err != nil {
		return job.Resources{}, err
	}
	return j.Spec.Resources, nil
}
