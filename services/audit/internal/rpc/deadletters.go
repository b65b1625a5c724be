package rpc

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/deadletter"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
)

// natsTimeout bounds what a call waits for NATS.
const natsTimeout = 10 * time.Second

// maxLetters is the most dead letters of one answer.
const maxLetters = 1000

// DeadLetters is DeadLetterService. Its fields are set before it serves.
type DeadLetters struct {
	auditv1.UnimplementedDeadLetterServiceServer
	// JS is where the dead-letter streams are.
	JS jetstream.JetStream
}

// ListDeadLetters returns the newest dead letters, oldest first, and how many
// there are of each service.
func (s *DeadLetters) ListDeadLetters(ctx context.Context, in *auditv1.ListDeadLettersRequest) (*auditv1.ListDeadLettersResponse, error) {
	f, err := letterFilter(in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	letters, err := deadletter.List(ctx, s.JS, f)
	if err != nil {
		return nil, away(ctx, err)
	}
	counts, err := deadletter.Count(ctx, s.JS)
	if err != nil {
		return nil, away(ctx, err)
	}
	out := &auditv1.ListDeadLettersResponse{Counts: map[string]int64{}}
	for service, n := range counts {
		out.Counts[service] = int64(n)
	}
	for _, l := range letters {
		out.DeadLetters = append(out.DeadLetters, letter(l))
	}
	return out, nil
}

// GetDeadLetter returns one dead letter with the message as it was.
func (s *DeadLetters) GetDeadLetter(ctx context.Context, in *auditv1.GetDeadLetterRequest) (*auditv1.GetDeadLetterResponse, error) {
	service, number, _ := strings.Cut(in.GetId(), "/")
	sequence, err := strconv.ParseUint(number, 10, 63)
	var wrong fault.Fields
	if err != nil || sequence == 0 || !bus.ValidToken(service) {
		wrong.Add("id", "%q: give SERVICE/NUMBER as `hodei dlq list` shows it, such as scheduler/1", clip(in.GetId()))
	}
	if err := wrong.Err("the request"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, natsTimeout)
	defer cancel()
	l, err := deadletter.Get(ctx, s.JS, service, sequence)
	if err != nil {
		return nil, away(ctx, err)
	}
	out := &auditv1.GetDeadLetterResponse{DeadLetter: letter(l), Headers: map[string]string{}, Raw: l.Data}
	for k, v := range l.Header {
		out.Headers[k] = strings.ToValidUTF8(strings.Join(v, ", "), "?")
	}
	return out, nil
}

func letterFilter(in *auditv1.ListDeadLettersRequest) (deadletter.Filter, error) {
	var wrong fault.Fields
	f := deadletter.Filter{Service: in.GetService(), Type: in.GetType(), Limit: int(in.GetLimit())}
	if f.Service != "" && !bus.ValidToken(f.Service) {
		wrong.Add("service", "%q is not the name of a service", clip(f.Service))
	}
	if f.Type != "" && !bus.ValidToken(f.Type) {
		wrong.Add("type", "%q is not the name of an event type", clip(f.Type))
	}
	if f.Limit < 0 || f.Limit > maxLetters {
		wrong.Add("limit", "%d: from 1 to %d, or 0 for 100", f.Limit, maxLetters)
	}
	f.Since = readTime(&wrong, "since", in.GetSince())
	return f, wrong.Err("the list")
}

func letter(l deadletter.Letter) *auditv1.DeadLetter {
	out := &auditv1.DeadLetter{
		Id: l.Service + "/" + strconv.FormatUint(l.Sequence, 10), Service: l.Service, Sequence: int64(l.Sequence),
		Error: strings.ToValidUTF8(l.Error, "?"), Consumer: l.Consumer, Deliveries: int32(l.Deliveries),
	}
	if !l.First.IsZero() {
		out.FirstAt = timestamppb.New(l.First)
	}
	if !l.Last.IsZero() {
		out.LastAt = timestamppb.New(l.Last)
	}
	if l.Event != nil {
		out.Event = message(*l.Event)
	}
	return out
}

// away says that it was NATS that did not answer.
func away(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fault.Wrap(fault.Unavailable, err, "NATS does not answer").WithCode("NATS_UNAVAILABLE", "check that NATS runs; `hodei status` shows who reaches it")
}
