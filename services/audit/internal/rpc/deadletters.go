package rpc

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/audit/internal/app"
)

const (
	// maxLetters is the most dead letters of one answer.
	maxLetters = 1000
	// maxRate is the most letters a second that a caller may ask for.
	maxRate = 1000
)

// DeadLetters is DeadLetterService. Its fields are set before it serves.
type DeadLetters struct {
	auditv1.UnimplementedDeadLetterServiceServer
	// Letters are the use cases.
	Letters *app.Letters
	// Log is the event log, which has the originals.
	Log interface {
		Read(ctx context.Context, o store.ReadOptions) ([]event.Event, error)
	}
	// Meta says who calls.
	Meta func(ctx context.Context) event.Meta
}

// ListDeadLetters returns the newest dead letters that match, oldest first, and
// how many open ones there are of each service.
func (s *DeadLetters) ListDeadLetters(ctx context.Context, in *auditv1.ListDeadLettersRequest) (*auditv1.ListDeadLettersResponse, error) {
	var wrong fault.Fields
	f := readLetterFilter(&wrong, &auditv1.DeadLetterFilter{
		Service: in.GetService(), Type: in.GetType(), Aggregate: in.GetAggregate(), CorrelationId: in.GetCorrelationId(),
		Since: in.GetSince(), Until: in.GetUntil(), Fingerprint: in.GetFingerprint(),
	})
	f.Resolved = in.GetResolved()
	limit := int(in.GetLimit())
	if limit < 0 || limit > maxLetters {
		wrong.Add("limit", "%d: from 1 to %d, or 0 for 100", limit, maxLetters)
	}
	if err := wrong.Err("the list"); err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = defaultPage
	}
	found, open, err := s.Letters.Find(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &auditv1.ListDeadLettersResponse{Counts: open}
	for _, l := range found[max(0, len(found)-limit):] {
		out.DeadLetters = append(out.DeadLetters, letter(l))
	}
	return out, nil
}

// GetDeadLetter returns one dead letter with its event as the log has it.
func (s *DeadLetters) GetDeadLetter(ctx context.Context, in *auditv1.GetDeadLetterRequest) (*auditv1.GetDeadLetterResponse, error) {
	found, _, err := s.Letters.Find(ctx, app.LetterFilter{IDs: []string{in.GetId()}})
	if err != nil {
		return nil, err
	}
	l := found[0]
	out := &auditv1.GetDeadLetterResponse{DeadLetter: letter(l), Headers: map[string]string{}}
	events, err := s.Log.Read(ctx, store.ReadOptions{After: l.Position - 1, Through: l.Position, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(events) == 1 {
		out.DeadLetter.Event, out.Raw = message(events[0]), events[0].Data
		for k, v := range events[0].Header() {
			out.Headers[k] = strings.ToValidUTF8(strings.Join(v, ", "), "?")
		}
	}
	return out, nil
}

// ReplayDeadLetters sends events back to the consumers that could not handle them.
func (s *DeadLetters) ReplayDeadLetters(in *auditv1.ReplayDeadLettersRequest, out grpc.ServerStreamingServer[auditv1.ReplayDeadLettersResponse]) error {
	op := app.Operation{Data: in.GetData(), Reason: in.GetReason(), DryRun: in.GetDryRun(), NoWait: in.GetNoWait()}
	return s.run(out.Context(), op, in.GetFilter(), in.GetAll(), in.GetRate(), func(o *auditv1.DeadLetterOutcome) error {
		return out.Send(&auditv1.ReplayDeadLettersResponse{Outcome: o})
	})
}

// DiscardDeadLetters gives events up.
func (s *DeadLetters) DiscardDeadLetters(in *auditv1.DiscardDeadLettersRequest, out grpc.ServerStreamingServer[auditv1.DiscardDeadLettersResponse]) error {
	op := app.Operation{Discard: true, WithParked: in.GetWithParked(), Reason: in.GetReason(), DryRun: in.GetDryRun()}
	return s.run(out.Context(), op, in.GetFilter(), in.GetAll(), in.GetRate(), func(o *auditv1.DeadLetterOutcome) error {
		return out.Send(&auditv1.DiscardDeadLettersResponse{Outcome: o})
	})
}

func (s *DeadLetters) run(ctx context.Context, op app.Operation, filter *auditv1.DeadLetterFilter, all bool, rate float64, send func(*auditv1.DeadLetterOutcome) error) error {
	var wrong fault.Fields
	op.Filter = readLetterFilter(&wrong, filter)
	f := filter
	if !all && len(f.GetIds()) == 0 && f.GetService() == "" && f.GetType() == "" && f.GetAggregate() == "" && f.GetCorrelationId() == "" &&
		f.GetFingerprint() == "" && f.GetSince() == nil && f.GetUntil() == nil {
		wrong.Add("filter", "selects nothing: give ids or a filter, or set all")
	}
	if rate < 0 || rate > maxRate || rate != rate {
		wrong.Add("rate", "%g: letters a second, more than 0 and at most %d, or 0 for no limit", rate, maxRate)
	}
	if len(op.Reason) > 1024 || strings.ContainsRune(op.Reason, 0) {
		wrong.Add("reason", "at most 1024 bytes of text")
	}
	if err := wrong.Err("the request"); err != nil {
		return err
	}
	pace, stop := pacer(rate)
	defer stop()
	op.Pace, op.Meta = pace, s.Meta(ctx)
	return s.Letters.Run(ctx, op, func(o app.Outcome) error {
		return send(&auditv1.DeadLetterOutcome{
			DeadLetter: letter(o.Letter), Result: o.Result, Detail: o.Detail, Done: int32(o.Done), Total: int32(o.Total),
		})
	})
}

// pacer lets the first one go at once and the others at the rate.
func pacer(rate float64) (pace func(ctx context.Context) error, stop func()) {
	if rate == 0 {
		return func(ctx context.Context) error { return ctx.Err() }, func() {}
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	first := true
	return func(ctx context.Context) error {
		if first {
			first = false
			return ctx.Err()
		}
		select {
		case <-tick.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, tick.Stop
}

func readLetterFilter(wrong *fault.Fields, in *auditv1.DeadLetterFilter) app.LetterFilter {
	f := app.LetterFilter{
		IDs: in.GetIds(), Service: in.GetService(), Type: in.GetType(), CorrelationID: in.GetCorrelationId(), Fingerprint: in.GetFingerprint(),
		Since: readTime(wrong, "since", in.GetSince()), Until: readTime(wrong, "until", in.GetUntil()),
	}
	if stream := readAggregate(wrong, "aggregate", in.GetAggregate()); stream.Type != "" {
		f.Aggregate = stream.String()
		if len(stream.ID) != 36 {
			wrong.Add("aggregate", "%q: give the whole id", clip(in.GetAggregate()))
		}
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		wrong.Add("until", "is not after since")
	}
	return f
}

func letter(l app.Letter) *auditv1.DeadLetter {
	out := &auditv1.DeadLetter{
		Id: l.ID, Service: l.Service, Sequence: l.Position, Error: l.Error, Consumer: l.Consumer, Deliveries: int32(l.Attempts),
		FirstAt: timestamppb.New(l.FirstAt), LastAt: timestamppb.New(l.LastAt), State: string(l.State), Kind: string(l.Kind),
		Fingerprint: l.Fingerprint, Replays: int32(l.Replays), Parks: l.Parks, By: l.By, Reason: l.Reason,
		RecordedAt: timestamppb.New(l.RecordedAt), Edited: l.Edited,
	}
	if l.OriginalID != "" {
		out.Event = &schedulerv1.Event{
			Id: l.OriginalID, Type: l.OriginalType, Version: int32(l.OriginalVersion), Position: l.Position, Aggregate: l.Aggregate,
			Namespace: l.Namespace, CorrelationId: l.CorrelationID,
		}
	}
	return out
}
