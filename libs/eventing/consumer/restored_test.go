package consumer_test

import (
	"errors"
	"strings"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/eventingtest"
)

// takeBack makes the log one that was restored from a backup and has gone on since.
func (w *world) takeBack(to, then int) {
	w.mu.Lock()
	w.events = w.events[:to:to]
	w.mu.Unlock()
	w.add(then)
}

// A consumer takes nothing from a stream that has what the log has lost, says so,
// and goes on by itself with the stream that is made in its place.
func TestWhatTheLogHasLostIsNotHandled(t *testing.T) {
	for _, then := range []int{0, 10, 40} {
		w := newWorld(t)
		stop := w.relay(0)
		w.add(100)
		first := &sink{}
		_, end := w.consume(w.config(first))
		first.got(t, w.want(0))
		end()
		stop()
		w.takeBack(80, then)

		s := &sink{}
		cfg := w.config(s)
		cfg.Start = startAt(70) // the position went back as well
		c, _ := w.consume(cfg)
		eventingtest.Eventually(t, "its complaint", func() bool { return strings.Contains(c.Status().Retrying, "lost its tail") })
		if s.count() != 0 {
			t.Fatalf("handled %d events of a stream that the log contradicts", s.count())
		}
		if err := w.js.DeleteStream(t.Context(), bus.EventsStream); err != nil {
			t.Fatal(err)
		}
		w.relay(70)
		s.got(t, w.want(70))
		eventingtest.Eventually(t, "no complaint", func() bool { return c.Status().Retrying == "" })
	}
}

// A consumer that has handled more than the log has is ended: its owner begins anew.
func TestAConsumerAheadOfTheLogEnds(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(10)
	cfg := w.config(&sink{})
	cfg.Start = startAt(11)
	c, err := consumer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Run(t.Context())
	var diverged *consumer.DivergedError
	if !errors.As(err, &diverged) || !errors.Is(err, fault.Precondition) {
		t.Fatalf("got %v", err)
	}
}
