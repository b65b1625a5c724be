// Package lifecycle runs the parts of a process together: they start in order and
// stop in reverse order, each awaited, so that a part may rely on those before it
// for as long as it runs. It knows nothing of signals; see process.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Part is one long-running piece of a process.
type Part struct {
	// Name says what it is, in logs and errors.
	Name string
	// Run blocks until ctx ends, drains, and returns nil or ctx's error. Any other
	// return, and any return before ctx ends, is a failure of the process.
	Run func(ctx context.Context) error
}

// running is a started part; err is valid once done is closed.
type running struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Run starts all parts in order and waits until ctx ends or a part returns. Then
// it ends the parts' contexts one after the other in reverse order, each awaited.
// Stopping takes at most grace as a whole; when nine tenths of it are gone, the
// parts that are left are all told to stop at once. A part's context keeps the
// values of ctx but not its end: that comes in the part's turn.
//
// Run returns nil when ctx ended and every part stopped cleanly in time. Otherwise
// the error names each part that failed, stopped by itself, panicked (with the
// stack) or did not stop within grace; those still run when Run returns.
func Run(ctx context.Context, grace time.Duration, log *slog.Logger, parts ...Part) error {
	base := context.WithoutCancel(ctx)
	early := make(chan *running, len(parts))
	all := make([]*running, 0, len(parts))
	for _, p := range parts {
		all = append(all, start(base, p, early))
		log.DebugContext(ctx, "part started", "part", p.Name)
	}
	var first *running
	select {
	case <-ctx.Done():
	case first = <-early:
		if first.err == nil && ctx.Err() == nil {
			first.err = errors.New("stopped by itself")
		}
		log.DebugContext(ctx, "part ended, stopping the others", "part", first.name, "error", first.err)
	}
	stop(ctx, grace, log, all)
	return results(first, all, grace)
}

// start runs a part in a goroutine of its own and reports its end.
func start(ctx context.Context, p Part, ended chan<- *running) *running {
	ctx, cancel := context.WithCancel(ctx)
	r := &running{name: p.Name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer func() {
			close(r.done)
			ended <- r
		}()
		r.err = protect(ctx, p.Run)
		if errors.Is(r.err, context.Canceled) && ctx.Err() != nil {
			r.err = nil
		}
	}()
	return r
}

// protect turns a panic into an error, so that the other parts still stop in order.
func protect(ctx context.Context, run func(context.Context) error) (err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		if p := recover(); p != nil {
			err = fault.New(fault.Internal, "panic: %v\n%s", p, debug.Stack())
		} else {
			err = fault.New(fault.Internal, "the goroutine was ended by runtime.Goexit")
		}
	}()
	err = run(ctx)
	returned = true
	return err
}

// stop cancels in reverse order and waits for each, within grace.
func stop(ctx context.Context, grace time.Duration, log *slog.Logger, all []*running) {
	hurry, end := time.NewTimer(grace-grace/10), time.NewTimer(grace)
	defer hurry.Stop()
	defer end.Stop()
	for i, r := range slices.Backward(all) {

		r.cancel()
	wait:
		for {
			select {
			case <-r.done:
				log.DebugContext(ctx, "part stopped", "part", r.name)
				break wait
			case <-hurry.C:
				for _, other := range all[:i] {
					other.cancel()
				}
			case <-end.C:
				return
			}
		}
	}
}

// results joins the failures of all parts, that of the first to end before the
// others, and the names of those that did not end.
func results(first *running, all []*running, grace time.Duration) error {
	var errs []error
	var late []string
	for _, r := range all {
		select {
		case <-r.done:
		default:
			late = append(late, r.name)
			continue
		}
		switch {
		case r.err == nil:
		case r == first:
			errs = slices.Insert(errs, 0, fmt.Errorf("%s: %w", r.name, r.err))
		default:
			errs = append(errs, fmt.Errorf("%s: %w", r.name, r.err))
		}
	}
	if len(late) > 0 {
		errs = append(errs, fault.New(fault.Internal, "did not stop within %s: %s", grace, strings.Join(late, ", ")))
	}
	return errors.Join(errs...)
}
