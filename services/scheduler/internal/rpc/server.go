// Package rpc serves JobService: it translates between the API's messages and
// the use cases, and decides nothing about jobs.
package rpc

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/internal/app"
	"hodei.dev/services/scheduler/internal/postgres"
)

// maxReason bounds what a caller says about a cancel.
const maxReason = 1024

// Feed opens the live feed of one job; the caller closes it.
type Feed interface {
	app.Feed
	Close()
}

// Server is JobService. Its fields are set before it serves.
type Server struct {
	schedulerv1.UnimplementedJobServiceServer
	// Jobs are the use cases.
	Jobs *app.Jobs
	// Read answers lists and counts from the projection.
	Read *postgres.Jobs
	// Watch opens the live feed of a job.
	Watch func(jobID string) Feed
	// WatchAll opens the live feed of all jobs.
	WatchAll func() Feed
	// Meta is the context of what a call appends.
	Meta func(ctx context.Context) event.Meta
}

// QueueJob queues one job; see the API.
func (s *Server) QueueJob(ctx context.Context, in *schedulerv1.QueueJobRequest) (*schedulerv1.QueueJobResponse, error) {
	r, err := request(in.GetSpec())
	if err != nil {
		return nil, err
	}
	r.Meta = s.Meta(ctx)
	if id := in.GetSpec().GetCorrelationId(); id != "" {
		r.Meta.CorrelationID = id
	}
	q, err := s.Jobs.Queue(ctx, r)
	if err != nil {
		return nil, err
	}
	return &schedulerv1.QueueJobResponse{Job: message(q.View, s.Jobs.Now()), Existed: q.Existed}, nil
}

// GetJob folds the job's events, so it is current.
func (s *Server) GetJob(ctx context.Context, in *schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
	id, err := s.Jobs.Resolve(ctx, in.GetJobId())
	if err != nil {
		return nil, err
	}
	v, err := s.Jobs.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	return &schedulerv1.GetJobResponse{Job: message(v, s.Jobs.Now())}, nil
}

// WatchJob sends the job at each change until it has ended.
func (s *Server) WatchJob(in *schedulerv1.WatchJobRequest, out grpc.ServerStreamingServer[schedulerv1.WatchJobResponse]) error {
	ctx := out.Context()
	id, err := s.Jobs.Resolve(ctx, in.GetJobId())
	if err != nil {
		return err
	}
	feed := s.Watch(id)
	defer feed.Close()
	return s.Jobs.Watch(ctx, id, feed, func(v app.View) error {
		return out.Send(&schedulerv1.WatchJobResponse{Job: message(v, s.Jobs.Now())})
	})
}

// CancelJob asks for the end of a job.
func (s *Server) CancelJob(ctx context.Context, in *schedulerv1.CancelJobRequest) (*schedulerv1.CancelJobResponse, error) {
	var wrong fault.Fields
	if reason := in.GetReason(); len(reason) > maxReason || !utf8.ValidString(reason) || strings.ContainsRune(reason, 0) {
		wrong.Add("reason", "at most %d bytes of text without NUL", maxReason)
	}
	if err := wrong.Err("the cancel"); err != nil {
		return nil, err
	}
	id, err := s.Jobs.Resolve(ctx, in.GetJobId())
	if err != nil {
		return nil, err
	}
	v, err := s.Jobs.Cancel(ctx, s.Meta(ctx), id, in.GetReason())
	if err != nil {
		return nil, err
	}
	return &schedulerv1.CancelJobResponse{Job: message(v, s.Jobs.Now())}, nil
}

// RetryJob queues a new job with the spec of one that has ended.
func (s *Server) RetryJob(ctx context.Context, in *schedulerv1.RetryJobRequest) (*schedulerv1.RetryJobResponse, error) {
	id, err := s.Jobs.Resolve(ctx, in.GetJobId())
	if err != nil {
		return nil, err
	}
	fresh := strings.ToLower(in.GetNewJobId())
	if fresh != "" && !app.WholeID(fresh) {
		var wrong fault.Fields
		wrong.Add("new_job_id", "%q: give a UUID, or leave it out to have one made", clip(in.GetNewJobId()))
		return nil, wrong.Err("the retry")
	}
	q, err := s.Jobs.Retry(ctx, s.Meta(ctx), id, fresh)
	if err != nil {
		return nil, err
	}
	return &schedulerv1.RetryJobResponse{Job: message(q.View, s.Jobs.Now()), Existed: q.Existed}, nil
}

// GetJobHistory returns the job's events as they stand in the log.
func (s *Server) GetJobHistory(ctx context.Context, in *schedulerv1.GetJobHistoryRequest) (*schedulerv1.GetJobHistoryResponse, error) {
	id, err := s.Jobs.Resolve(ctx, in.GetJobId())
	if err != nil {
		return nil, err
	}
	events, err := s.Jobs.History(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &schedulerv1.GetJobHistoryResponse{}
	for _, e := range events {
		out.Events = append(out.Events, eventMessage(e))
	}
	return out, nil
}

// ListJobs reads a page of the projection.
func (s *Server) ListJobs(ctx context.Context, in *schedulerv1.ListJobsRequest) (*schedulerv1.ListJobsResponse, error) {
	filter, err := listFilter(in)
	if err != nil {
		return nil, err
	}
	views, next, err := s.Read.List(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	out := &schedulerv1.ListJobsResponse{NextPageToken: next}
	now := s.Jobs.Now()
	for _, v := range views {
		out.Jobs = append(out.Jobs, summary(v, now))
	}
	return out, nil
}

// GetQueue reads the projection's counters.
func (s *Server) GetQueue(ctx context.Context, in *schedulerv1.GetQueueRequest) (*schedulerv1.GetQueueResponse, error) {
	counts, err := s.Read.Counts(ctx, in.GetNamespace())
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	return &schedulerv1.GetQueueResponse{Jobs: counts}, nil
}
