package relay_test

import (
	"context"
	"sync"
	"testing"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
)

// pausedLog is a log whose reader stops, as a process under SIGSTOP, with the first
// events in its hand.
type pausedLog struct {
	*memory
	once            sync.Once
	stopped, goesOn chan struct{}
}

func (l *pausedLog) Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error) {
	events, err := l.memory.Read(ctx, o)
	if len(events) > 0 {
		l.once.Do(func() {
			close(l.stopped)
			<-l.goesOn
		})
	}
	return events, err
}

// A relay is paused between reading and publishing, and goes on when another one
// has published all that and more: the stream refuses it, and holds each event once.
func TestAPausedRelayPublishesNothingTwice(t *testing.T) {
	srv := eventingtest.NATS(t)
	nc := srv.Conn()
	l := &memory{}
	late := &pausedLog{memory: l, stopped: make(chan struct{}), goesOn: make(chan struct{})}
	l.add(400)
	cfg := config(t, l, nc)
	cfg.Store = late
	paused := start(t, cfg)
	<-late.stopped
	active := start(t, config(t, l, srv.Conn()))
	active.reaches(t, 400)
	l.add(300)
	close(late.goesOn)
	paused.reaches(t, 700)
	active.reaches(t, 700)
	_, _ = paused.stop(), active.stop()
	verify(t, l, nc)
}
