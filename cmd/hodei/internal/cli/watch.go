package cli

import (
	"context"
	"errors"

	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// watchJob calls each with the job as it is and at every change, and returns it once
// it has ended. A server that goes away on the way is waited for; no version of the
// job is told twice.
func (a *app) watchJob(ctx context.Context, r *remote, id string, each func(*schedulerv1.Job) error) (*schedulerv1.Job, error) {
	p := a.patience(r)
	var last *schedulerv1.Job
	for {
		err := watchOnce(ctx, r, id, func(j *schedulerv1.Job) error {
			p.renew()
			if last != nil && j.GetVersion() <= last.GetVersion() {
				return nil
			}
			last = j
			return each(j)
		})
		if last != nil && terminal(last.GetState()) {
			return last, nil
		}
		if stop, ok := errors.AsType[stopError](err); ok {
			return last, stop.error
		}
		if err = p.bear(ctx, err); err != nil {
			return last, err
		}
	}
}

// stopError is the error of a callback: not the server's, so nothing to retry.
type stopError struct{ error }

func (e stopError) Unwrap() error { return e.error }

// watchOnce follows one stream; it never returns nil.
func watchOnce(ctx context.Context, r *remote, id string, each func(*schedulerv1.Job) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.jobs.WatchJob(ctx, &schedulerv1.WatchJobRequest{JobId: id})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.GetJob() == nil {
			continue
		}
		if err := each(m.GetJob()); err != nil {
			return stopError{err}
		}
		if terminal(m.GetJob().GetState()) {
			return errEnded
		}
	}
}

// errEnded: the job is terminal and nothing more will come.
var errEnded = errors.New("the job has ended")
