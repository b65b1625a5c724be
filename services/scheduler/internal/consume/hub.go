// Package consume brings job events to those who watch a job. Each replica has
// one hub on an ephemeral consumer of its own: watching is a view of the live
// stream, and what it misses is read from the log.
package consume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

const (
	// mailboxSize is how many events may wait for a slow watcher; then it is told
	// to read the log instead. A job has few events.
	mailboxSize = 256
	// allMailboxSize is the same for a watcher of all jobs.
	allMailboxSize = 1 << 16
	// askTimeout bounds one question to NATS: asking again soon is quicker than
	// waiting long for a server that is still starting.
	askTimeout = 1500 * time.Millisecond
)

// all stands for every job where a job's id is asked for.
const all = ""

// Hub fans the live job events out to watches. Use [NewHub]; safe for concurrent use.
type Hub struct {
	nc  *nats.Conn
	js  jetstream.JetStream
	log *slog.Logger
	// live is told once events arrive.
	live func(err error)

	mu      sync.Mutex // guards what follows
	watches map[string]map[*Watch]struct{}
	trouble string // why no events arrive
}

// NewHub returns a hub that has not started. live is told nil each time that
// events begin to arrive, and must not block. It is not told of interruptions:
// without NATS jobs can still be queued and read (see Trouble).
func NewHub(nc *nats.Conn, js jetstream.JetStream, log *slog.Logger, live func(err error)) *Hub {
	return &Hub{nc: nc, js: js, log: log, live: live, watches: map[string]map[*Watch]struct{}{}}
}

// Watch opens the feed of one job's events from now on. It may be opened whether
// or not the hub is connected: after each connection every watch is told to read
// the log. The caller closes it.
func (h *Hub) Watch(jobID string) *Watch {
	w := &Watch{hub: h, jobID: jobID, size: mailboxSize, wake: make(chan struct{}, 1)}
	if jobID == all {
		w.size = allMailboxSize
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watches[jobID] == nil {
		h.watches[jobID] = map[*Watch]struct{}{}
	}
	h.watches[jobID][w] = struct{}{}
	return w
}

// WatchAll opens the feed of every job's events, but those of its creation.
func (h *Hub) WatchAll() *Watch { return h.Watch(all) }

// Run receives until ctx ends, and then returns nil. It outlives every loss of
// the stream, the consumer and the connection.
func (h *Hub) Run(ctx context.Context) error {
	for wait := 20 * time.Millisecond; ; {
		began := time.Now()
		err := h.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			wait = 20 * time.Millisecond
		}
		h.interrupted(err.Error())
		h.log.InfoContext(ctx, "live job events are interrupted", "cause", err, "in", wait)
		timer := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// Trouble is why no live events arrive just now; empty while they do.
func (h *Hub) Trouble() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trouble
}

func (h *Hub) interrupted(why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trouble = why
}

// session receives from a new consumer until the connection or the consumer is
// in doubt. The consumer begins at the stream's end; once it stands, every watch
// reads the log, so that nothing falls between.
func (h *Hub) session(ctx context.Context) error {
	lost := h.nc.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer h.nc.RemoveStatusListener(lost)
	if err := bus.WaitConnected(ctx, h.nc); err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cons, err := h.js.OrderedConsumer(ask, bus.EventsStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: subjects(), DeliverPolicy: jetstream.DeliverNewPolicy, InactiveThreshold: 30 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("make a consumer of live job events: %w", err)
	}
	doubt := make(chan error, 1)
	pull, err := cons.Consume(h.deliver, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		select {
		case doubt <- err:
		default:
		}
	}))
	if err != nil {
		return fmt.Errorf("receive live job events: %w", err)
	}
	defer pull.Stop()
	h.resync()
	h.interrupted("")
	h.live(nil)
	select {
	case err := <-doubt:
		return fmt.Errorf("receive live job events: %w", err)
	case <-lost:
		return errors.New("lost the connection to NATS")
	case <-ctx.Done():
		return nil
	}
}

// subjects are the job events that change what a watcher sees, the notices that
// stand between them, and tombstones. A job is watched after it was created.
func subjects() []string {
	var types []string
	for _, e := range catalogue.Entries {
		if e.Type == "JobCreated" || e.Type == "JobQueued" || e.Role == catalogue.Telemetry {
			continue
		}
		for _, a := range e.Aggregates {
			if a == catalogue.Job {
				types = append(types, e.Type)
			}
		}
	}
	return bus.EventFilters(types)
}

// deliver gives one message to the job's watches. What cannot be read makes every
// watch read the log: it may have been theirs.
func (h *Hub) deliver(m jetstream.Msg) {
	header := m.Headers()
	if _, _, tombstone := event.TombstoneOf(header); tombstone {
		h.resync()
		return
	}
	h.mu.Lock()
	idle := len(h.watches) == 0
	h.mu.Unlock()
	if idle {
		return
	}
	e, err := event.FromMessage(header, m.Data())
	if err != nil {
		h.resync()
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches[e.Stream.ID] {
		w.put(e)
	}
	for w := range h.watches[all] {
		w.put(e)
	}
}

// resync makes every watch read the log.
func (h *Hub) resync() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, watches := range h.watches {
		for w := range watches {
			w.miss()
		}
	}
}

// Watch is the feed of one job for one watcher. It implements app.Feed.
type Watch struct {
	hub   *Hub
	jobID string
	size  int
	wake  chan struct{}

	mu     sync.Mutex // guards what follows
	events []event.Event
	missed bool
}

// Next waits for events, or for the news that some were missed: then those that
// it has are forgotten, and the log has to be asked.
func (w *Watch) Next(ctx context.Context) (events []event.Event, resync bool, err error) {
	select {
	case <-w.wake:
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	events, resync = w.events, w.missed
	w.events, w.missed = nil, false
	return events, resync, nil
}

// Close ends the watch. Closing twice is harmless.
func (w *Watch) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	watches := w.hub.watches[w.jobID]
	delete(watches, w)
	if len(watches) == 0 {
		delete(w.hub.watches, w.jobID)
	}
}

func (w *Watch) put(e event.Event) {
	w.mu.Lock()
	if len(w.events) < w.size {
		w.events = append(w.events, e)
	} else {
		w.events, w.missed = nil, true
	}
	w.mu.Unlock()
	w.ring()
}

func (w *Watch) miss() {
	w.mu.Lock()
	w.events, w.missed = nil, true
	w.mu.Unlock()
	w.ring()
}

func (w *Watch) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
