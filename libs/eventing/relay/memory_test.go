package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// memory is a log in memory: what the relay needs of one, with failures on demand.
type memory struct {
	mu     sync.Mutex
	events []event.Event
	buried map[int64]string
	fail   error
	nudge  func(int64)
}

func (l *memory) add(n int) {
	l.mu.Lock()
	for range n {
		p := int64(len(l.events) + 1)
		l.events = append(l.events, event.Event{
			Meta: event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"},
			ID:   event.NewID(), Type: "JobQueued", Version: 1, Stream: event.Stream{Type: "job", ID: strconv.FormatInt(p%7, 10)},
			StreamVersion: 1, Position: p, Time: time.Now().UTC().Truncate(time.Microsecond),
			Data: json.RawMessage(fmt.Sprintf(`{"n":%d, "pad":%q}`, p, strings.Repeat("x", 300))),
		})
	}
	head, nudge := int64(len(l.events)), l.nudge
	l.mu.Unlock()
	if nudge != nil {
		nudge(head)
	}
}

func (l *memory) change(position int64, fn func(*event.Event)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(&l.events[position-1])
}

func (l *memory) Read(_ context.Context, o store.ReadOptions) ([]event.Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, l.fail
	}
	end := int64(len(l.events))
	if o.Through > 0 {
		end = min(end, o.Through)
	}
	end = min(end, o.After+int64(o.Limit))
	if o.After >= end {
		return nil, nil
	}
	return append([]event.Event(nil), l.events[o.After:end]...), nil
}

func (l *memory) Head(context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.events)), l.fail
}

func (l *memory) Record(_ context.Context, e event.Event, reason string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buried == nil {
		l.buried = map[int64]string{}
	}
	l.buried[e.Position] = reason
	return nil
}
