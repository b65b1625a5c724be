package consumer_test

import (
	"context"
	"sync"
	"testing"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/eventingtest"
)

// meddled is a log in which something happens before it is first asked for its head.
type meddled struct {
	*world
	first func()
}

func (m *meddled) Head(ctx context.Context) (int64, error) {
	m.first()
	return m.world.Head(ctx)
}

// The stream is made anew, with another base, after a consumer has looked at it and
// before the consumer has made its durable: which would begin at the old stream's number.
func TestTheStreamIsAnotherOneWhileTheConsumerIsMade(t *testing.T) {
	for name, types := range map[string][]string{"all types": nil, "one type": {"A"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			stop := w.relay(0)
			w.add(100, "A", "B")
			w.published(100)
			stop()
			s, done := &sink{}, make(chan struct{})
			cfg := w.config(s, types...)
			cfg.Start = startAt(50)
			cfg.Store = &meddled{world: w, first: sync.OnceFunc(func() {
				if err := w.js.DeleteStream(t.Context(), bus.EventsStream); err != nil {
					t.Error(err)
				}
				w.add(20, "A", "B")
				w.relay(50)
				w.published(120)
				close(done)
			})}
			w.consume(cfg)
			<-done
			s.got(t, w.want(50, types...))
		})
	}
}

// published waits until the stream goes up to a position.
func (w *world) published(position int64) {
	w.tb.Helper()
	eventingtest.Eventually(w.tb, "the relay", func() bool {
		e, err := bus.LookupEvents(w.tb.Context(), w.js)
		return err == nil && e.Head() == position
	})
}
