package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

const (
	// linger is how long the hub goes on listening when nobody watches any more.
	linger = 10 * time.Second
	// hubWait bounds how long a new watch may take to begin.
	hubWait = 10 * time.Second
	// hubCheck is how often the hub asks whether the stream is still the same.
	hubCheck = 15 * time.Second
)

// Hub tells watchers of this replica about events as they happen: one ordered
// consumer for all of them, there only while somebody watches. It is safe for
// concurrent use.
type Hub struct {
	js    jetstream.JetStream
	types []string
	log   *slog.Logger

	mu      sync.Mutex // guards the following
	watches map[*Watch]struct{}
	run     *hubRun // nil while nobody watches
	idle    *time.Timer
}

type hubRun struct {
	cancel context.CancelFunc
	// ready is closed once events are delivered.
	ready chan struct{}
	done  chan struct{}
}

// NewHub returns a hub for events of some types.
func NewHub(js jetstream.JetStream, log *slog.Logger, types ...string) *Hub {
	return &Hub{js: js, types: types, log: log, watches: map[*Watch]struct{}{}}
}

// Watch is one watcher's queue. An event without a type says that some may have
// been missed: load again.
type Watch struct {
	hub    *Hub
	stream string // id; empty = all
	c      chan event.Event
	missed atomic.Bool
}

// Watch hears of the events of one stream, or of all where id is empty, from now
// on: load what is watched afterwards, and nothing is missed. buffer is how many
// events may wait; what does not fit is noted in Missed.
func (h *Hub) Watch(ctx context.Context, id string, buffer int) (*Watch, error) {
	w := &Watch{hub: h, stream: id, c: make(chan event.Event, buffer)}
	h.mu.Lock()
	h.watches[w] = struct{}{}
	if h.idle != nil {
		h.idle.Stop()
		h.idle = nil
	}
	if h.run == nil {
		h.run = h.begin()
	}
	run := h.run
	h.mu.Unlock()
	timer := time.NewTimer(hubWait)
	defer timer.Stop()
	select {
	case <-run.ready:
		return w, nil
	case <-timer.C:
		w.Close()
		return nil, fault.New(fault.Unavailable, "events cannot be watched: the event stream does not answer").
			WithCode("NATS_UNAVAILABLE", "check that NATS and the relay run; the same call may succeed later")
	case <-ctx.Done():
		w.Close()
		return nil, context.Cause(ctx)
	}
}

// C has the events.
func (w *Watch) C() <-chan event.Event { return w.c }

// Missed tells whether an event did not fit, and forgets it.
func (w *Watch) Missed() bool { return w.missed.Swap(false) }

// Close ends it.
func (w *Watch) Close() {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watches, w)
	if len(h.watches) == 0 && h.run != nil && h.idle == nil {
		h.idle = time.AfterFunc(linger, h.rest)
	}
}

// rest ends the consumer where still nobody watches.
func (h *Hub) rest() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watches) == 0 && h.run != nil {
		h.run.cancel()
		h.run, h.idle = nil, nil
	}
}

// Run keeps the hub until ctx ends, then ends its consumer.
func (h *Hub) Run(ctx context.Context) error {
	<-ctx.Done()
	h.mu.Lock()
	run := h.run
	h.mu.Unlock()
	if run != nil {
		run.cancel()
		<-run.done
	}
	return nil
}

func (h *Hub) begin() *hubRun {
	ctx, cancel := context.WithCancel(context.Background())
	run := &hubRun{cancel: cancel, ready: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(run.done)
		delay := 20 * time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			err := h.listen(ctx, run)
			if ctx.Err() != nil {
				return
			}
			if time.Since(began) > time.Minute {
				delay = 20 * time.Millisecond
			}
			h.log.Info("watching events was interrupted", "error", err, "again_in", delay)
			timer := time.NewTimer(delay)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			delay = min(2*delay, 2*time.Second)
		}
	}()
	return run
}

var errOtherStream = errors.New("the event stream is another one")

// listen delivers until ctx ends or the consumer or the stream is gone.
func (h *Hub) listen(ctx context.Context, run *hubRun) error {
	if err := bus.WaitConnected(ctx, h.js.Conn()); err != nil {
		return err
	}
	stream, err := bus.LookupEvents(ctx, h.js)
	if err != nil {
		return err
	}
	cons, err := h.js.OrderedConsumer(ctx, bus.EventsStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: bus.EventFilters(h.types), DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: stream.Last + 1,
	})
	if err != nil {
		return fmt.Errorf("make a consumer: %w", err)
	}
	doubt := make(chan error, 1)
	consuming, err := cons.Consume(h.deliver, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		select {
		case doubt <- err:
		default:
		}
	}))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	defer func() {
		consuming.Stop()
		<-consuming.Closed()
	}()
	select {
	case <-run.ready:
		h.resync() // not the first time: something may have been missed
	default:
		close(run.ready)
	}
	tick := time.NewTicker(hubCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-consuming.Closed():
			return errors.New("the consumer is closed")
		case err := <-doubt:
			return fmt.Errorf("receive: %w", err)
		case <-tick.C:
			if now, err := bus.LookupEvents(ctx, h.js); err == nil && now.OtherThan(stream) {
				return errOtherStream
			}
		}
	}
}

func (h *Hub) deliver(m jetstream.Msg) {
	if _, _, tombstone := event.TombstoneOf(m.Headers()); tombstone {
		h.resync()
		return
	}
	e, err := event.FromMessage(m.Headers(), m.Data())
	if err != nil {
		h.log.Debug("a message that is no event", "subject", m.Subject(), "error", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		if w.stream == "" || w.stream == e.Stream.ID {
			w.offer(e)
		}
	}
}

func (h *Hub) resync() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		w.offer(event.Event{})
	}
}

func (w *Watch) offer(e event.Event) {
	select {
	case w.c <- e:
	default:
		w.missed.Store(true)
	}
}
