// Package rpc serves the relay's gRPC door. It decides nothing.
package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/relay"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
	"hodei.dev/services/relay/internal/compare"
	"hodei.dev/services/relay/internal/epoch"
)

// defaultLimit is how many differences are listed where the caller does not say.
const defaultLimit = 100

// Completeness serves CompletenessService.
type Completeness struct {
	relayv1.UnimplementedCompletenessServiceServer
	Comparer *compare.Comparer
	Operator *epoch.Operator
	Meta     func(ctx context.Context) event.Meta
}

// Compare streams how far the comparison is, and what it has found.
func (s *Completeness) Compare(req *relayv1.CompareRequest, stream grpc.ServerStreamingServer[relayv1.CompareResponse]) error {
	o := compare.Options{Quick: req.GetQuick(), Limit: int(req.GetLimit())}
	if o.Limit == 0 {
		o.Limit = defaultLimit
	}
	if o.Limit < 1 || o.Limit > 10_000 {
		var wrong fault.Fields
		wrong.Add("limit", "%d: from 1 to 10000", o.Limit)
		return wrong.Err("the request")
	}
	found, err := s.Comparer.Run(stream.Context(), o, func(now compare.State) error {
		return stream.Send(&relayv1.CompareResponse{Comparison: comparison(now)})
	})
	if err != nil {
		return err
	}
	return stream.Send(&relayv1.CompareResponse{Comparison: comparison(found), Done: true})
}

// BeginEpoch plans or begins another epoch of the events stream.
func (s *Completeness) BeginEpoch(ctx context.Context, req *relayv1.BeginEpochRequest) (*relayv1.BeginEpochResponse, error) {
	if req.GetDryRun() {
		plan, err := s.Operator.Plan(ctx)
		if err != nil {
			return nil, err
		}
		return begun(plan, ""), nil
	}
	var created time.Time
	if req.GetStreamCreated() != nil {
		created = req.GetStreamCreated().AsTime()
	}
	plan, id, err := s.Operator.Begin(ctx, s.Meta(ctx), created)
	if err != nil {
		return nil, err
	}
	return begun(plan, id), nil
}

func begun(p epoch.Plan, id string) *relayv1.BeginEpochResponse {
	return &relayv1.BeginEpochResponse{
		Reason: p.Reason, StreamCreated: timestamppb.New(p.Stream.Created), StreamBase: p.Stream.Base, StreamHead: p.Stream.Head(),
		LogHead: p.LogHead, Agreed: p.Agreed, Base: p.Base, GivenUp: differences(p.GivenUp), EventId: id,
	}
}

func differences(list []relay.Difference) []*relayv1.Difference {
	out := make([]*relayv1.Difference, len(list))
	for i, d := range list {
		out[i] = &relayv1.Difference{Kind: string(d.Kind), Position: d.Position, EventId: d.EventID, Type: d.Type, Aggregate: d.Stream, Detail: d.Detail}
	}
	return out
}

func comparison(s compare.State) *relayv1.Comparison {
	out := &relayv1.Comparison{
		Phase: s.Phase, Checked: s.Checked, Total: s.Total, Quick: s.Quick, LogHead: s.LogHead,
		Compared: s.Compared, Expired: s.Expired, Unpublished: s.Unpublished, Counts: map[string]int64{},
		Differences: differences(s.First), Mismatched: int64(s.Mismatched), Agrees: s.Agrees(),
	}
	if !s.Stream.Created.IsZero() {
		out.StreamBase, out.StreamFirst, out.StreamHead = s.Stream.Base, s.Stream.Start(), s.Stream.Head()
		out.StreamCreated = timestamppb.New(s.Stream.Created)
	}
	for kind, n := range s.Counts {
		out.Counts[string(kind)] = n
	}
	for _, p := range s.Positions {
		out.Positions = append(out.Positions, &relayv1.Position{
			Schema: p.Schema, Name: p.Name, Position: p.Position, Lag: max(0, s.LogHead-p.Position), UpdatedAt: timestamppb.New(p.UpdatedAt),
		})
	}
	for _, f := range s.Findings() {
		out.Findings = append(out.Findings, &platformv1.Finding{Check: f.Check, Severity: f.Severity, Subject: f.Subject, Problem: f.Problem, Action: f.Action})
	}
	return out
}
