package projection_test

import (
	"errors"
	"testing"

	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
)

// An event that the log does not hold leaves no row, although it was delivered.
func TestAnEventThatTheLogHasLostLeavesNoRow(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("lost")
	p.add(5, streams(1), "A")
	run := p.background(s.Run)
	s.reaches(t, 5)
	if err := run(); err != nil {
		t.Fatal(err)
	}
	stranger := event.Event{ID: event.NewID(), Type: "A", Position: 5, Stream: streams(1)[0]}
	// The position stands before it, as after a restore.
	if _, err := s.pool.Exec(t.Context(), `delete from lost.seen where position = 5`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.pool.Exec(t.Context(), `update lost.positions set position = 4`); err != nil {
		t.Fatal(err)
	}
	err := s.Deliver(t.Context(), stranger)
	if _, ok := errors.AsType[*consumer.DivergedError](err); !ok {
		t.Errorf("got %v", err)
	}
	if got := s.seen(t); len(got) != 4 {
		t.Errorf("rows of %v", got)
	}
}
