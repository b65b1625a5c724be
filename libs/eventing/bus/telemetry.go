package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/event"
)

// PublishTelemetry sends a message of the telemetry stream: a CloudEvent that is
// no fact, stands in no log and may be lost. It does not wait for an answer. An
// empty Time is set to now.
func PublishTelemetry(nc *nats.Conn, e event.Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now().UTC()
	}
	m := &nats.Msg{Subject: TelemetrySubject(e.Type, e.Stream.ID), Header: e.Header(), Data: e.Data}
	if err := nc.PublishMsg(m); err != nil {
		return fmt.Errorf("publish %s of %s: %w", e.Type, e.Stream, err)
	}
	return nil
}

// Telemetry is one telemetry message as the stream holds it.
type Telemetry struct {
	event.Event
	// Stored is when the stream took it, by the server's clock: what silence is judged from.
	Stored time.Time
	// Sequence is its place in the stream; it grows as long as anybody publishes.
	Sequence uint64
}

// TelemetryConfig says what to subscribe to.
type TelemetryConfig struct {
	// Type is the event type, such as "WorkerHeartbeat"; empty means all.
	Type string
	// Since replays what the stream still holds from then on; zero means only what is new.
	Since time.Time
	// Replicas of the stream, where it has to be made: 1, 3 or 5. Default 1.
	Replicas int
	// Log gets interruptions and messages that cannot be read. Default slog.Default().
	Log *slog.Logger
}

// SubscribeTelemetry calls handle with each telemetry message in order, on one
// goroutine, until ctx ends (then it returns nil). It survives the loss of its
// connection, consumer or server; messages may then be missed, as telemetry may.
// A message that is no CloudEvent is logged and skipped.
func SubscribeTelemetry(ctx context.Context, js jetstream.JetStream, cfg TelemetryConfig, handle func(Telemetry)) error {
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	filter := "hodei.telemetry.>"
	if cfg.Type != "" {
		filter = TelemetrySubject(cfg.Type, "*")
	}
	r := &receiver{since: cfg.Since, log: log, handle: handle}
	for ctx.Err() == nil {
		err := retry(ctx, func() error { return subscribeOnce(ctx, js, cfg.Replicas, filter, r) })
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("subscribe to telemetry %s: %w", filter, err)
		}
	}
	return nil
}

// receiver takes what comes, whichever subscription brings it: the client's callback
// may still be at work when its subscription is said to be closed.
type receiver struct {
	log    *slog.Logger
	handle func(Telemetry)

	mu    sync.Mutex // held while a message is handled; guards since
	since time.Time  // of what is to come; zero = new messages only
}

func (r *receiver) from() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

func (r *receiver) take(m jetstream.Msg) {
	meta, err := m.Metadata()
	if err != nil {
		return
	}
	e, err := event.FromMessage(m.Headers(), m.Data())
	if err != nil {
		r.log.Warn("skipped telemetry that is no event", "subject", m.Subject(), "error", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.since = meta.Timestamp.Add(time.Nanosecond)
	r.handle(Telemetry{Event: e, Stored: meta.Timestamp, Sequence: meta.Sequence.Stream})
}

// subscribeOnce receives until anything is in doubt. A lost connection is one: on a
// server that came back without the stream the client would look for it for ever.
func subscribeOnce(ctx context.Context, js jetstream.JetStream, replicas int, filter string, r *receiver) error {
	oc := jetstream.OrderedConsumerConfig{FilterSubjects: []string{filter}, DeliverPolicy: jetstream.DeliverNewPolicy}
	if start := r.from(); !start.IsZero() {
		oc.DeliverPolicy, oc.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
	}
	if err := WaitConnected(ctx, js.Conn()); err != nil {
		return err
	}
	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() { CancelWhenLost(ctx, js.Conn(), cancel) })
	cons, err := js.OrderedConsumer(ctx, TelemetryStream, oc)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// A NATS that lost its store: heartbeats go nowhere until somebody makes the stream.
		if err := Ensure(ctx, js, "", replicas); err != nil {
			return err
		}
		cons, err = js.OrderedConsumer(ctx, TelemetryStream, oc)
	}
	if err != nil {
		return err
	}
	doubt := make(chan error, 1)
	run, err := cons.Consume(r.take, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		select {
		case doubt <- err:
		default:
		}
	}))
	if err != nil {
		return err
	}
	defer func() {
		run.Stop()
		<-run.Closed()
	}()
	select {
	case <-caller.Done():
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-doubt:
	case <-run.Closed():
		err = errors.New("telemetry subscription closed")
	}
	if caller.Err() != nil {
		return nil
	}
	r.log.Info("telemetry was interrupted", "error", err)
	return err
}
