package proctree

import (
	"context"
	"time"
)

// pollExit waits where the system has nothing better: Linux before 5.3, others.
func pollExit(ctx context.Context, p Process) error {
	const every = 50 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for running(p) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
