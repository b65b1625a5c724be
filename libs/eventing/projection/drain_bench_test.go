package projection_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
)

// BenchmarkDrain is how fast a service that was away gets through its backlog: a consumer whose handler does nothing,
// from the stream and, where the stream is lost, from Postgres; and a projection with a statement for each event.
//
//	go test hodei.dev/libs/eventing/projection -run '^$' -bench Drain -benchtime 200000x
func BenchmarkDrain(b *testing.B) {
	b.Run("stream", func(b *testing.B) {
		p := newBacklog(b)
		p.drained(b)
	})
	b.Run("postgres", func(b *testing.B) {
		p := newBacklog(b)
		if err := p.stop(); err != nil {
			b.Fatal(err)
		}
		s, err := p.js.Stream(b.Context(), bus.EventsStream)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Purge(b.Context()); err != nil {
			b.Fatal(err)
		}
		p.drained(b)
	})
	b.Run("projection", func(b *testing.B) {
		p := newBacklog(b)
		s := p.service("board")
		b.ResetTimer()
		p.background(s.Run)
		s.reaches(b, p.head())
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// newBacklog has b.N events in its log and in its stream, which nobody has consumed.
func newBacklog(b *testing.B) *pipeline {
	b.Helper()
	p := newPipeline(b, eventingtest.MigratedPostgres(b))
	for n := 0; n < b.N; n += 500 {
		var a store.Append
		for i := range min(500, b.N-n) {
			stream := event.Stream{Type: "job", ID: uuid.NewString()}
			e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"}, counted{N: n + i, Type: "A"})
			if err != nil {
				b.Fatal(err)
			}
			a.Changes = append(a.Changes, store.Change{Stream: stream, Namespace: "default", State: "X", Events: []event.Event{e}})
		}
		if _, err := p.store.Append(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
	eventingtest.Eventually(b, "all is published", func() bool {
		e, err := bus.LookupEvents(b.Context(), p.js)
		return err == nil && e.Head() == int64(b.N)
	})
	return p
}

// drained measures a consumer from its start until it has handled everything.
func (p *pipeline) drained(b *testing.B) {
	b.Helper()
	var at atomic.Int64
	c, err := consumer.New(consumer.Config{
		Service: "board", Store: p.store, NC: p.nc, JS: p.js, Log: p.log,
		Start: func(context.Context) (int64, error) { return 0, nil },
		Handle: func(_ context.Context, events []event.Event) error {
			at.Store(events[len(events)-1].Position)
			return nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	p.background(c.Run)
	eventingtest.Eventually(b, "all is handled", func() bool { return at.Load() == int64(b.N) })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
