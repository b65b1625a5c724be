package provisioner

import (
	"context"
	"fmt"
	"sync/atomic"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/provisioner/internal/app"
)

// follower delivers the log to the engine and knows how far it is.
type follower struct {
	chassis *chassis.Chassis
	now     atomic.Pointer[consumer.Consumer] // nil while another replica is active
}

func (f *follower) run(ctx context.Context, after int64, handle func(ctx context.Context, events []event.Event) error) error {
	// It starts where the engine's snapshot stands: no position is stored.
	c, err := consumer.New(consumer.Config{
		Service: name, Types: app.Types(), Handle: handle,
		Start:    func(context.Context) (int64, error) { return after, nil },
		Incident: f.chassis.Incidents.Report, Store: f.chassis.Store, NC: f.chassis.NC, JS: f.chassis.JS, Replicas: f.chassis.Replicas, Letters: f.chassis.Letters(), Log: f.chassis.Log, Meter: f.chassis.Tel.Meter("hodei.dev/eventing"),
	})
	if err != nil {
		return fmt.Errorf("make the consumer: %w", err)
	}
	f.now.Store(c)
	defer f.now.Store(nil)
	return c.Run(ctx)
}

// status fills in how far the consumer is, what the sweeps had to repair, and alerts.
func (f *follower) status(s *platformv1.ServiceStatus, found app.Found, alerts map[string][]provider.Raised) {
	for name, raised := range alerts {
		for _, r := range raised {
			s.Figures["alerts"]++
			s.Problems["alert "+string(r.Alert)+" of provider "+name] = r.Reason
		}
	}
	s.Figures["zombies_destroyed"], s.Figures["ghosts_confirmed"] = found.Zombies, found.Ghosts
	c := f.now.Load()
	if c == nil {
		return
	}
	st := c.Status()
	s.Position, s.Lag = st.Position, st.Pending
	if st.Retrying != "" {
		s.Problems["events"] = st.Retrying
	}
}
