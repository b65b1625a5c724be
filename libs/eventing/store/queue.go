package store

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

// Limits of one commit. More waits for the next, which starts at once.
const (
	batchEvents = 2048
	batchBytes  = 8 << 20
)

// pending is one caller's append on its way.
type pending struct {
	Append
	ctx    context.Context
	giveUp time.Time // after this, Unavailable instead of another try
	// events are those of all changes, with stream, version and namespace set;
	// ids and digests are theirs.
	events  []event.Event
	ids     []pgtype.UUID
	digests [][]byte
	// streams are the ids of the changes' streams, holders of the keys' streams.
	streams, holders []pgtype.UUID
	bytes            int
	unsure           bool // a commit was tried whose outcome is unknown

	done   chan struct{} // closed once result and err are set
	result []event.Event
	err    error
}

func (p *pending) finish(result []event.Event, err error) {
	p.result, p.err = result, err
	close(p.done)
}

type keyName struct{ namespace, kind, value string }

// queue holds what callers wait for, in order of arrival.
type queue struct {
	wake chan struct{} // has one token where the committer should look

	mu      sync.Mutex // guards the following
	waiting []*pending
	closed  bool
	trouble error // why commits fail at present; nil where they do not
}

func (q *queue) put(p *pending) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return fault.New(fault.Unavailable, "append: the store is closed")
	}
	q.waiting = append(q.waiting, p)
	q.signal()
	return nil
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// withdraw takes p back and reports whether the committer had not begun it.
func (q *queue) withdraw(p *pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.waiting, p)
	if i < 0 {
		return false
	}
	q.waiting = slices.Delete(q.waiting, i, i+1)
	return true
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

func (q *queue) setTrouble(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.trouble = err
}

func (q *queue) troubled() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.trouble
}

// next waits for work and returns it; nil once the queue is closed and empty.
func (q *queue) next() []*pending {
	for {
		if batch, closed := q.take(); len(batch) > 0 {
			return batch
		} else if closed {
			return nil
		}
		<-q.wake
	}
}

// take removes a batch: what came first, as much as fits, and of those that want
// the same stream or key only the first; the others meet its outcome.
func (q *queue) take() (batch []*pending, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	streams, keys := map[pgtype.UUID]bool{}, map[keyName]bool{}
	events, bytes := 0, 0
	rest := q.waiting[:0:0]
	for i, p := range q.waiting {
		if len(batch) > 0 && (events+len(p.events) > batchEvents || bytes+p.bytes > batchBytes) {
			rest = append(rest, q.waiting[i:]...)
			break
		}
		if !claim(p, streams, keys) {
			rest = append(rest, p)
			continue
		}
		batch = append(batch, p)
		events += len(p.events)
		bytes += p.bytes
	}
	q.waiting = rest
	return batch, q.closed
}

// claim adds p's streams and keys; where one is there already it reports false.
func claim(p *pending, streams map[pgtype.UUID]bool, keys map[keyName]bool) bool {
	for _, id := range p.streams {
		if streams[id] {
			return false
		}
	}
	for _, k := range p.Keys {
		if keys[keyName{k.Namespace, k.Kind, k.Value}] {
			return false
		}
	}
	for _, id := range p.streams {
		streams[id] = true
	}
	for _, k := range p.Keys {
		keys[keyName{k.Namespace, k.Kind, k.Value}] = true
	}
	return true
}
