// Package rpc serves AuditService and DeadLetterService: it translates between
// the API's messages and the use cases, and decides nothing.
package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/eventing/event"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/audit/internal/app"
)

// Server is AuditService. Its fields are set before it serves.
type Server struct {
	auditv1.UnimplementedAuditServiceServer
	// Audit are the use cases.
	Audit *app.Audit
}

// SearchEvents returns a page of the events that match.
func (s *Server) SearchEvents(ctx context.Context, in *auditv1.SearchEventsRequest) (*auditv1.SearchEventsResponse, error) {
	filter, page, err := search(in)
	if err != nil {
		return nil, err
	}
	events, more, err := s.Audit.Search(ctx, filter, page)
	if err != nil {
		return nil, err
	}
	out := &auditv1.SearchEventsResponse{}
	for _, e := range events {
		out.Events = append(out.Events, message(e))
	}
	if more {
		out.NextPageToken, err = encodeToken(in, events[len(events)-1].Position)
	}
	return out, err
}

// CountEvents counts what matches, by type.
func (s *Server) CountEvents(ctx context.Context, in *auditv1.CountEventsRequest) (*auditv1.CountEventsResponse, error) {
	filter, err := filterOf(in.GetFilter())
	if err != nil {
		return nil, err
	}
	counts, err := s.Audit.Count(ctx, filter)
	if err != nil {
		return nil, err
	}
	out := &auditv1.CountEventsResponse{Counts: counts}
	for _, n := range counts {
		out.Total += n
	}
	return out, nil
}

// TraceEvents returns a story as a tree of causes.
func (s *Server) TraceEvents(ctx context.Context, in *auditv1.TraceEventsRequest) (*auditv1.TraceEventsResponse, error) {
	correlation, stream, err := traceOf(in)
	if err != nil {
		return nil, err
	}
	trace, err := s.Audit.Trace(ctx, correlation, stream)
	if err != nil {
		return nil, err
	}
	out := &auditv1.TraceEventsResponse{CorrelationId: trace.CorrelationID}
	for _, n := range trace.Nodes {
		out.Nodes = append(out.Nodes, &auditv1.TraceNode{Event: message(trace.Events[n.Index]), Depth: int32(n.Depth)})
	}
	return out, nil
}

func message(e event.Event) *schedulerv1.Event {
	return &schedulerv1.Event{
		Id: e.ID, Type: e.Type, Version: int32(e.Version), Position: e.Position, StreamVersion: int64(e.StreamVersion),
		Aggregate: e.Stream.String(), Namespace: e.Namespace, Source: e.Source, CorrelationId: e.CorrelationID,
		CausationId: e.CausationID, Actor: e.Actor, Time: timestamppb.New(e.Time), Data: e.Data,
	}
}
