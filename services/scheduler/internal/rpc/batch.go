package rpc

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/internal/app"
)

// window is how many messages of a batch are in work at once. It bounds the
// memory of one stream (a message has at most 4 MiB) and lets the log's committer
// put many of them into one commit.
const window = 32

// QueueJobs queues a stream of jobs. Messages are worked on concurrently and
// answered in order; a job that is refused ends nothing.
func (s *Server) QueueJobs(stream grpc.BidiStreamingServer[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	answers := make(chan chan *schedulerv1.QueueJobsResponse, window)
	sent := make(chan error, 1)
	go func() { sent <- sendInOrder(stream, answers, cancel) }()

	err := s.receive(ctx, stream, answers)
	close(answers)
	if sendErr := <-sent; sendErr != nil {
		return sendErr
	}
	return err
}

// sendInOrder sends each answer once it is there. It goes on taking answers
// after a failure, so that nobody waits for it.
func sendInOrder(stream grpc.BidiStreamingServer[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse],
	answers <-chan chan *schedulerv1.QueueJobsResponse, stop func(),
) error {
	var failed error
	for answer := range answers {
		a := <-answer
		if failed != nil {
			continue
		}
		if failed = stream.Send(a); failed != nil {
			stop()
		}
	}
	return failed
}

func (s *Server) receive(ctx context.Context, stream grpc.BidiStreamingServer[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse],
	answers chan<- chan *schedulerv1.QueueJobsResponse,
) error {
	meta, batch, index := s.Meta(ctx), s.Jobs.NewBatch(), int64(0)
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := make(chan *schedulerv1.QueueJobsResponse, 1)
		select {
		case answers <- answer: // blocks while the window is full
		case <-ctx.Done():
			return ctx.Err()
		}
		first := index
		index += int64(len(in.GetSpecs()))
		go func() { answer <- queueTogether(ctx, batch, meta, in.GetSpecs(), first) }()
	}
}

// queueTogether answers the jobs of one message.
func queueTogether(ctx context.Context, batch *app.Batch, meta event.Meta, specs []*schedulerv1.JobSpec, first int64) *schedulerv1.QueueJobsResponse {
	out := &schedulerv1.QueueJobsResponse{Results: make([]*schedulerv1.QueueJobsResult, len(specs))}
	requests := make([]app.Request, 0, len(specs))
	places := make([]int, 0, len(specs))
	for i, in := range specs {
		out.Results[i] = &schedulerv1.QueueJobsResult{Index: first + int64(i)}
		r, err := request(in)
		if err != nil {
			refuse(out.Results[i], err)
			continue
		}
		r.Meta = meta
		// Each job of a batch is a story of its own.
		if r.Meta.CorrelationID = in.GetCorrelationId(); r.Meta.CorrelationID == "" {
			r.Meta.CorrelationID = event.NewID()
		}
		requests, places = append(requests, r), append(places, i)
	}
	for i, o := range batch.Queue(ctx, requests) {
		result := out.Results[places[i]]
		if o.Err != nil {
			refuse(result, o.Err)
			continue
		}
		result.JobId, result.Existed = o.ID, o.Existed
	}
	return out
}

// refuse says why a job of a batch was not taken.
func refuse(out *schedulerv1.QueueJobsResult, err error) {
	out.Error, out.Kind = errorText(err), string(kindOf(err))
	if e, ok := errors.AsType[*fault.Error](err); ok && e.RetryAfter > 0 {
		out.RetryAfter = e.RetryAfter.String()
	}
}

// kindOf is the kind of an error; the end of the call is none that a job has.
func kindOf(err error) fault.Kind {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Unavailable
	}
	return fault.KindOf(err)
}

// errorText is an error as a line: with its fields, and what to do where that is not in them.
func errorText(err error) string {
	text := err.Error()
	var e *fault.Error
	if errors.As(err, &e) && e.Advice != "" && len(e.Fields) == 0 {
		text += " (" + e.Advice + ")"
	}
	return strings.ToValidUTF8(text, "?")
}
