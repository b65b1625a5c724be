package app

import (
	"context"
	"errors"
	"sync"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/services/scheduler/core"
)

const (
	// countAfter is how old a reading may be while jobs come and there is room.
	countAfter = time.Second
	// countAgain is the same before a job is refused.
	countAgain = 100 * time.Millisecond
	// countBehind is how many jobs may be behind a reading.
	countBehind = 10_000
	// countTimeout bounds one reading.
	countTimeout = time.Second
)

// Counts is the read model's count of jobs.
type Counts interface {
	// Live returns how many jobs of each namespace have not ended at a position of the log.
	Live(ctx context.Context) (position int64, byNamespace map[string]int64, err error)
}

// Gate lets jobs in as long as the limits allow. It reads the counts when a job comes
// and the last reading is old, never on a timer, and always before it refuses one. Made
// by [NewGate]; safe for concurrent use.
type Gate struct {
	counts   Counts
	counting bool
	now      func() time.Time

	reading sync.Mutex // held while the counts are read

	mu        sync.Mutex // guards what follows
	admission *core.Admission
	readAt    time.Time
}

// NewGate returns a gate. now is its clock.
func NewGate(limits core.Limits, counts Counts, now func() time.Time) *Gate {
	return &Gate{counts: counts, counting: limits.Counting(), now: now, admission: core.NewAdmission(limits)}
}

// Admit lets a job of so many bytes in, or is an Exhausted error. A job that was let
// in is settled once.
func (g *Gate) Admit(ctx context.Context, namespace string, bytes int64) error {
	switch {
	case !g.stale(countAfter):
	case g.reading.TryLock(): // one reads, the others go on
		g.read(ctx)
		g.reading.Unlock()
	case g.unread(): // but not before the first reading has come
		g.reading.Lock()
		g.reading.Unlock()
	}
	err := g.admit(namespace, bytes)
	if !errors.Is(err, fault.Exhausted) || !g.stale(countAgain) {
		return err
	}
	g.reading.Lock()
	if g.stale(countAgain) {
		g.read(ctx)
	}
	g.reading.Unlock()
	return g.admit(namespace, bytes)
}

func (g *Gate) admit(namespace string, bytes int64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.admission.Admit(namespace, bytes)
}

// Settle says what became of a job that was let in: the position of its JobCreated, or 0.
func (g *Gate) Settle(namespace string, bytes, position int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admission.Settle(namespace, bytes, position)
}

// stale tells whether the reading is older than that, or many jobs are behind it.
func (g *Gate) stale(than time.Duration) bool {
	if !g.counting {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	age := g.now().Sub(g.readAt)
	return age >= than || age >= countAgain && g.admission.Behind() >= countBehind
}

func (g *Gate) unread() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.readAt.IsZero()
}

// read takes a reading. While the database does not answer the last one stands: the
// log will not take jobs then either.
func (g *Gate) read(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	position, live, err := g.counts.Live(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.readAt = g.now()
	if err == nil {
		g.admission.Observe(position, live)
	}
}
