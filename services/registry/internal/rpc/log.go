package rpc

import (
	"context"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/logs"
	"hodei.dev/services/registry/internal/nats"
)

// Logs serves LogService. Its fields are set once.
type Logs struct {
	registryv1.UnimplementedLogServiceServer
	App    *app.App
	Reader *logs.Reader
}

// ReadLogs sends what is stored and, with follow, what comes.
func (l *Logs) ReadLogs(r *registryv1.ReadLogsRequest, stream registryv1.LogService_ReadLogsServer) error {
	var wrong fault.Fields
	if s := r.GetStream(); s != "" && s != logs.Stdout && s != logs.Stderr {
		wrong.Add("stream", "%q must be stdout, stderr or empty", s)
	}
	if r.GetAttempt() < 0 {
		wrong.Add("attempt", "must not be negative")
	}
	if r.GetAfterSeq() < 0 {
		wrong.Add("after_seq", "must not be negative")
	}
	if r.GetTail() < 0 {
		wrong.Add("tail", "must not be negative")
	}
	if r.GetSince() != nil && !r.GetSince().IsValid() {
		wrong.Add("since", "is not a time")
	}
	if err := wrong.Err("the request"); err != nil {
		return err
	}
	ctx := stream.Context()
	id, err := l.App.ResolveJob(ctx, r.GetJobId())
	if err != nil {
		return err
	}
	q := logs.Request{
		JobID: id, Attempt: int(r.GetAttempt()), Stream: r.GetStream(), AfterSeq: r.GetAfterSeq(), Tail: int(r.GetTail()), Follow: r.GetFollow(),
	}
	if r.GetSince() != nil {
		q.Since = r.GetSince().AsTime()
	}
	return l.Reader.Read(ctx, q, func(attempt int, chunks []logs.Chunk) error {
		return stream.Send(&registryv1.ReadLogsResponse{Attempt: int32(attempt), Chunks: nats.Wire(chunks)})
	})
}

// Jobs are the jobs that logs belong to, from the event log and the hub.
type Jobs struct {
	App *app.App
	Hub *nats.Hub
}

// Job is the job as it is.
func (j Jobs) Job(ctx context.Context, id string) (job.Job, error) { return j.App.Job(ctx, id) }

// Watch has a token whenever the job may have changed.
func (j Jobs) Watch(ctx context.Context, id string) (<-chan struct{}, func(), error) {
	w, err := j.Hub.Watch(ctx, id, 1)
	if err != nil {
		return nil, nil, err
	}
	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		for {
			select {
			case <-w.C():
				select {
				case changed <- struct{}{}:
				default:
				}
			case <-done:
				return
			}
		}
	}()
	return changed, func() {
		w.Close()
		close(done)
	}, nil
}
