package app

import (
	"context"
	"math/rand/v2"
	"time"
)

// The pauses of a task that fails.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 15 * time.Second
)

// task is the one goroutine that works for a worker. Its fields are guarded by
// the engine's mutex.
type task struct {
	// again: something has happened since the step began.
	again bool
	// interrupt ends the step, so that it begins anew.
	interrupt context.CancelFunc
	// gone is why the resource has ended by itself; "" = it has not.
	gone string
	// wake ends the pause after a failure.
	wake chan struct{}
	// failures is how often its resource could not be made.
	failures int
}

// poke has a worker looked at. With urgent, what is being done for it is
// interrupted, because it may not be wanted any more.
func (e *Engine) poke(id string, urgent bool) { e.tell(id, urgent, "") }

// gone takes a provider's word that a resource has ended by itself.
func (e *Engine) gone(g Gone) { e.tell(g.WorkerID, false, g.Reason) }

func (e *Engine) tell(id string, urgent bool, gone string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx == nil || e.ctx.Err() != nil {
		return
	}
	t, ok := e.tasks[id]
	if !ok {
		t = &task{wake: make(chan struct{}, 1)}
		e.tasks[id] = t
		ctx := e.ctx
		e.running.Go(func() { e.work(ctx, id, t) })
	}
	t.again = true
	if gone != "" {
		t.gone = gone
	}
	if urgent && t.interrupt != nil {
		t.interrupt()
	}
	wake(t.wake)
}

// busy tells whether somebody works for the worker.
func (e *Engine) busy(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, ok := e.tasks[id]
	return ok
}

// work takes steps until there is nothing left to do for the worker, or ctx ends.
func (e *Engine) work(ctx context.Context, id string, t *task) {
	pause := firstPause
	for {
		step, cancel := context.WithCancel(ctx)
		e.mu.Lock()
		t.again, t.interrupt = false, cancel
		gone := t.gone
		select {
		case <-t.wake: // what it stands for is seen by this step
		default:
		}
		e.mu.Unlock()
		err := e.step(step, id, t, gone)
		interrupted := step.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case interrupted:
			continue
		case err == nil:
			if e.finish(id, t) {
				return
			}
			pause = firstPause
			continue
		}
		e.Logger.WarnContext(ctx, "cannot do what a worker needs, trying again", "worker", id, "error", err, "in", pause)
		if !sleep(ctx, pause, t.wake) {
			return
		}
		pause = min(2*pause, maxPause)
	}
}

// finish forgets the task unless something has happened meanwhile.
func (e *Engine) finish(id string, t *task) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.again {
		return false
	}
	if e.tasks[id] == t {
		delete(e.tasks, id)
	}
	return true
}

// sleep waits with jitter, or until woken; false where ctx ends.
func sleep(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-woken:
		return true
	case <-ctx.Done():
		return false
	}
}
