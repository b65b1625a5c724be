package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"

	"hodei.dev/services/dispatcher/internal/app"
	"hodei.dev/services/dispatcher/internal/metrics"
	"hodei.dev/services/dispatcher/internal/session"
)

// active is the part that one replica at a time runs.
type active struct {
	chassis *chassis.Chassis
	cfg     Config
	meter   *metrics.Metrics
	current atomic.Pointer[app.Dispatcher] // nil while this replica stands by
	events  atomic.Pointer[consumer.Consumer]
}

// run is one activation, with a memory of its own.
func (a *active) run(ctx context.Context) error {
	c := a.chassis
	if err := c.EnsureStreams(ctx); err != nil {
		return fmt.Errorf("make the dispatcher's streams: %w", err)
	}
	d := app.New(app.Config{
		Log: c.Store, Sessions: session.New(c.NC), Meter: a.meter, Logger: c.Log,
		Now: time.Now, NewID: event.NewID, Jitter: rand.Float64,
		InFlight: a.cfg.InFlight, HandOverTimeout: time.Duration(a.cfg.HandOverTimeout), HandOverGrace: time.Duration(a.cfg.HandOverGrace),
		Policies: a.cfg.policies(),
	})
	position, err := d.Activate(ctx)
	if err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	events, err := consumer.New(consumer.Config{
		Service: catalogue.Dispatcher, Types: app.Types(), Store: c.Store, NC: c.NC, JS: c.JS, Replicas: c.Replicas,
		Start: func(context.Context) (int64, error) { return position, nil },
		Handle: func(ctx context.Context, events []event.Event) error {
			err := d.Handle(ctx, events)
			if errors.Is(err, fault.Invalid) {
				return consumer.Permanent(err)
			}
			return err
		},
		// The memory takes no event of an aggregate after a later one: where one was skipped
		// the role begins anew, with a memory of what the log says then.
		OnceOnly: true,
		Letters:  c.Letters(), Incident: c.Incidents.Report, Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"),
	})
	if err != nil {
		return fmt.Errorf("make the consumer: %w", err)
	}
	a.current.Store(d)
	a.events.Store(events)
	defer a.current.Store(nil)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.Run(ctx) })
	group.Go(func() error { return events.Run(ctx) })
	return group.Wait()
}

func (a *active) figures() app.Figures {
	if d := a.current.Load(); d != nil {
		return d.Figures()
	}
	return app.Figures{}
}

func (a *active) status(_ context.Context, s *platformv1.ServiceStatus) {
	if a.current.Load() == nil {
		return
	}
	f, e := a.figures(), a.events.Load().Status()
	s.Position, s.Lag = e.Position, e.Pending
	s.Figures["queue_depth"], s.Figures["idle_workers"], s.Figures["providers"] = int64(f.Queued), int64(f.Idle), int64(f.Providers)
	s.Figures["circuits_open"] = int64(len(f.Circuits))
	for _, c := range f.Circuits {
		s.Problems["circuit of "+string(c.Kind)+" "+c.Name] = fmt.Sprintf("%s since %s: %s", c.State, c.OpenedAt.Format(time.RFC3339), c.Reason)
	}
	if e.Retrying != "" {
		s.Problems["events"] = e.Retrying
	}
}
