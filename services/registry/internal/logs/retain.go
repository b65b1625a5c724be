package logs

import (
	"context"
	"log/slog"
	"time"
)

// Partitions are the days that logs are stored by.
type Partitions interface {
	// Ensure makes the days to come where they are missing.
	Ensure(ctx context.Context) error
	// Drop removes the days that lie wholly before a time and returns their names.
	Drop(ctx context.Context, before time.Time) ([]string, error)
}

// retainEvery is how often days are made and dropped; a day is made two days ahead.
const retainEvery = time.Hour

// Keeper makes the days to come and drops those that are older than they have to
// be kept. Any number may run at once.
type Keeper struct {
	Partitions Partitions
	// Retention is how long logs are kept; 0 = for ever.
	Retention time.Duration
	Now       func() time.Time
	Log       *slog.Logger
	// Report is told the latest outcome.
	Report func(error)
}

// Run works at once and then hourly, until ctx ends; after a failure it tries
// again soon.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		err := k.Once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		k.Report(err)
		next := retainEvery
		if err != nil {
			k.Log.WarnContext(ctx, "cannot look after the days of the log, trying again", "error", err)
			next = 5 * time.Second
		}
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// Once makes and drops days. Whole days are kept: a log is removed when the day
// after the one it was written on is older than the retention.
func (k *Keeper) Once(ctx context.Context) error {
	if err := k.Partitions.Ensure(ctx); err != nil {
		return err
	}
	if k.Retention <= 0 {
		return nil
	}
	dropped, err := k.Partitions.Drop(ctx, k.Now().Add(-k.Retention))
	if err != nil {
		return err
	}
	if len(dropped) > 0 {
		k.Log.InfoContext(ctx, "removed logs that were older than they have to be kept", "days", dropped, "retention", k.Retention)
	}
	return nil
}
