package dispatcher_test

import (
	"context"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/eventingtest"
)

// TestSkippedEvent: the stream is purged in the moment between the publication of a
// worker's step to READY and its delivery, and the notices behind it come through.
// Handed over late, the step would be ignored by a memory that has a later version of
// the worker already; so the dispatcher begins anew, and the job that waits for that
// worker gets it.
func TestSkippedEvent(t *testing.T) {
	w := newWorld(t)
	w.registry(accept)
	w.register(1, 0)
	w.dispatcher()
	id := w.queue(nil)
	x := w.becomes(id, job.StateScheduled).WorkerID
	js := eventingtest.JetStream(t, w.nc)
	eventingtest.Eventually(t, "all to be delivered", func() bool {
		events, err := bus.LookupEvents(t.Context(), js)
		c, cerr := js.Consumer(t.Context(), bus.EventsStream, catalogue.Dispatcher)
		return err == nil && cerr == nil && events.Head() == w.head() && c.CachedInfo().NumPending == 0 && c.CachedInfo().NumAckPending == 0
	})
	w.stopped()
	w.up(x) // CONNECTING, READY, WorkerReady, WorkerReadyForJob
	events, err := bus.LookupEvents(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	// A purge beyond the end leaves what publication and purge leave: the next message
	// has the number behind them.
	notices := uint64(w.head() - 1 - events.Base)
	if err := events.Stream.Purge(t.Context(), jetstream.WithPurgeSequence(notices)); err != nil {
		t.Fatal(err)
	}
	w.publish()
	if j := w.becomes(id, job.StateRunning); j.WorkerID != x || j.Attempt != 1 {
		t.Errorf("job: %+v", j)
	}
}

// head is the position of the last event.
func (w *world) head() int64 {
	head, err := w.store.Head(context.Background())
	if err != nil {
		w.Error(err)
	}
	return head
}
