package rpc

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// WatchJobs sends the changes of state of all jobs of a namespace. Where it has
// missed something it ends: the caller begins again and reads what it needs.
func (s *Server) WatchJobs(in *schedulerv1.WatchJobsRequest, out grpc.ServerStreamingServer[schedulerv1.WatchJobsResponse]) error {
	namespace := in.GetNamespace()
	if namespace != "" && !job.ValidNamespace(namespace) {
		var wrong fault.Fields
		wrong.Add("namespace", "%q: a DNS label: 1 to 63 lower-case letters, digits or '-'", namespace)
		return wrong.Err("the watch")
	}
	feed := s.WatchAll()
	defer feed.Close()
	if err := out.Send(&schedulerv1.WatchJobsResponse{}); err != nil {
		return err
	}
	for {
		events, missed, err := feed.Next(out.Context())
		if err != nil {
			return err
		}
		if missed {
			return fault.New(fault.Unavailable, "changes of jobs were missed").WithCode("WATCH_INTERRUPTED", "watch again, and read the jobs of interest")
		}
		changes, err := changesOf(events, namespace)
		if err != nil {
			return err
		}
		if len(changes) > 0 {
			if err := out.Send(&schedulerv1.WatchJobsResponse{Changes: changes}); err != nil {
				return err
			}
		}
	}
}

// changesOf are the changes of state that events carry; notices carry none.
func changesOf(events []event.Event, namespace string) ([]*schedulerv1.JobChange, error) {
	var out []*schedulerv1.JobChange
	for _, e := range events {
		if namespace != "" && e.Namespace != namespace {
			continue
		}
		fact, err := aggregate.Decode(e)
		if err != nil {
			return nil, err
		}
		c := &schedulerv1.JobChange{JobId: e.Stream.ID, Time: timestamppb.New(e.Time)}
		switch fact := fact.(type) {
		case job.Scheduled:
			c.State = string(job.StateScheduled)
		case job.Assigned:
			c.State, c.Attempt = string(job.StateAssigned), int32(fact.Attempt)
		case job.Requeued:
			c.State, c.Attempt = string(job.StatePending), int32(fact.Attempt)
		case job.StatusChanged:
			c.State, c.Attempt = string(fact.To), int32(fact.Attempt)
		default:
			continue
		}
		out = append(out, c)
	}
	return out, nil
}
