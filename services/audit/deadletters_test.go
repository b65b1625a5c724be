package audit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/letters"
	"hodei.dev/libs/service/servicetest"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
)

var errPoison = errors.New(`no field "x" in job 17`)

// reactor plays a service that cannot handle JobQueued until it is fixed.
type reactor struct {
	fixed   atomic.Bool
	handled chan event.Event
	stop    func()
}

func (w *world) reactor() *reactor {
	w.t.Helper()
	r := &reactor{handled: make(chan event.Event, 100)}
	w.startReactor(r)
	return r
}

func (w *world) startReactor(r *reactor) {
	w.t.Helper()
	nc := w.nats.Conn()
	js := eventingtest.JetStream(w.t, nc)
	if err := bus.Ensure(w.t.Context(), js, "dispatcher", 1); err != nil {
		w.t.Fatal(err)
	}
	head, err := w.store.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := consumer.New(consumer.Config{
		Service: "dispatcher", Types: []string{"JobQueued"}, Store: w.store, NC: nc, JS: js, Log: servicetest.Quiet(), Letters: letters.New(w.store, "dispatcher"),
		Start: func(context.Context) (int64, error) { return head, nil }, // a snapshot
		Handle: func(_ context.Context, events []event.Event) error {
			if !r.fixed.Load() {
				return consumer.Permanent(errPoison)
			}
			for _, e := range events {
				r.handled <- e
			}
			return nil
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	r.stop = servicetest.Background(w.t, "reactor", c.Run)
}

// dead lists the letters once there are n open ones.
func (w *world) dead(n int, in *auditv1.ListDeadLettersRequest) []*auditv1.DeadLetter {
	w.t.Helper()
	var list *auditv1.ListDeadLettersResponse
	eventingtest.Eventually(w.t, "the dead letters in the list", func() bool {
		var err error
		list, err = w.letters.ListDeadLetters(w.t.Context(), in)
		return err == nil && len(list.GetDeadLetters()) == n
	})
	return list.GetDeadLetters()
}

func (w *world) replay(in *auditv1.ReplayDeadLettersRequest) (results []string, last *auditv1.DeadLetterOutcome, err error) {
	w.t.Helper()
	stream, err := w.letters.ReplayDeadLetters(w.t.Context(), in)
	if err != nil {
		return nil, nil, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return results, last, nil
		}
		if err != nil {
			return results, last, err
		}
		last = m.GetOutcome()
		results = append(results, last.GetResult())
	}
}

func TestDeadLettersAreReplayedEditedAndDiscarded(t *testing.T) {
	w := newWorld(t)
	r := w.reactor()
	var queued []event.Event
	for range 3 {
		events := w.queued(event.NewID(), meta, job.Spec{})
		queued = append(queued, events[len(events)-1])
	}
	all := w.dead(3, &auditv1.ListDeadLettersRequest{})
	first := all[0]
	if first.GetState() != "DEAD" || first.GetService() != "dispatcher" || first.GetEvent().GetId() != queued[0].ID || first.GetError() != errPoison.Error() ||
		first.GetFingerprint() != all[2].GetFingerprint() || first.GetEvent().GetCorrelationId() != meta.CorrelationID {
		t.Fatal(first)
	}
	w.dead(1, &auditv1.ListDeadLettersRequest{Aggregate: queued[1].Stream.String()})
	w.dead(0, &auditv1.ListDeadLettersRequest{Fingerprint: "0"})
	w.dead(3, &auditv1.ListDeadLettersRequest{Service: "dispatcher", Type: "JobQueued", Fingerprint: first.GetFingerprint(), CorrelationId: meta.CorrelationID})
	got, err := w.letters.GetDeadLetter(t.Context(), &auditv1.GetDeadLetterRequest{Id: first.GetId()[:8]})
	if err != nil || !bytes.Equal(got.GetRaw(), queued[0].Data) || got.GetHeaders()["ce-id"] != queued[0].ID {
		t.Fatal(got, err)
	}

	head, _ := w.store.Head(t.Context())
	results, _, err := w.replay(&auditv1.ReplayDeadLettersRequest{All: true, DryRun: true})
	if now, _ := w.store.Head(t.Context()); err != nil || !slices.Equal(results, []string{"WOULD_REPLAY", "WOULD_REPLAY", "WOULD_REPLAY"}) || now != head {
		t.Fatal(results, err)
	}
	one := &auditv1.DeadLetterFilter{Ids: []string{first.GetId()}}
	results, last, err := w.replay(&auditv1.ReplayDeadLettersRequest{Filter: one})
	if err != nil || !slices.Equal(results, []string{"FAILED_AGAIN"}) || last.GetDetail() != errPoison.Error() || last.GetDeadLetter().GetReplays() != 1 {
		t.Fatal(last, err)
	}

	r.fixed.Store(true)
	for data, want := range map[string]string{`{"attempts":1}`: "attempts", `[`: "data"} {
		_, _, err := w.replay(&auditv1.ReplayDeadLettersRequest{Filter: one, Data: []byte(data)})
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Fatal(data, err)
		}
	}
	results, _, err = w.replay(&auditv1.ReplayDeadLettersRequest{Filter: one, Data: bytes.ReplaceAll(queued[0].Data, []byte(`"attempt":`), []byte(`"attempt": `)), Reason: "by hand"})
	if err != nil || !slices.Equal(results, []string{"REPLAYED"}) {
		t.Fatal(results, err)
	}
	if e := <-r.handled; e.ID != queued[0].ID {
		t.Fatal(e)
	}

	stream, err := w.letters.DiscardDeadLetters(t.Context(), &auditv1.DiscardDeadLettersRequest{Filter: &auditv1.DeadLetterFilter{Ids: []string{all[1].GetId()}}, Reason: "old"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stream.Recv(); err != nil || m.GetOutcome().GetResult() != "DISCARDED" {
		t.Fatal(m, err)
	}
	if _, _, err := w.replay(&auditv1.ReplayDeadLettersRequest{Filter: &auditv1.DeadLetterFilter{Ids: []string{all[1].GetId()}}}); !errors.Is(err, fault.Precondition) {
		t.Fatal(err)
	}

	// The service is down: the replay waits in the log.
	r.stop()
	results, _, err = w.replay(&auditv1.ReplayDeadLettersRequest{All: true, NoWait: true})
	if err != nil || !slices.Equal(results, []string{"REQUESTED"}) {
		t.Fatal(results, err)
	}
	w.startReactor(r)
	if e := <-r.handled; e.ID != queued[2].ID {
		t.Fatal(e)
	}
	w.dead(0, &auditv1.ListDeadLettersRequest{})
	if all := w.dead(3, &auditv1.ListDeadLettersRequest{Resolved: true}); all[1].GetReason() != "old" || all[0].GetReason() != "by hand" || all[0].GetBy() == "" {
		t.Fatal(all)
	}
	counts, err := w.audit.CountEvents(t.Context(), &auditv1.CountEventsRequest{Filter: &auditv1.EventFilter{Aggregate: "deadletter"}})
	want := map[string]int64{"DeadLetterRecorded": 4, "DeadLetterReplayRequested": 3, "DeadLetterReplayed": 2, "DeadLetterDiscarded": 1}
	for typ, n := range want {
		if counts.GetCounts()[typ] != n {
			t.Errorf("%s: %d, want %d (%v)", typ, counts.GetCounts()[typ], n, err)
		}
	}
}

func TestReplaysKeepTheOrderOfAnAggregateAndTheRate(t *testing.T) {
	w := newWorld(t)
	r := w.reactor()
	id := event.NewID()
	w.queued(id, meta, job.Spec{})
	j := w.queued(event.NewID(), meta, job.Spec{})[0].Stream.ID
	w.dead(2, &auditv1.ListDeadLettersRequest{})
	// A second letter of the first job.
	w.decide(id, meta, func(x job.Job) ([]job.Event, error) { return []job.Event{job.Queued{}}, nil })
	all := w.dead(3, &auditv1.ListDeadLettersRequest{})
	results, _, err := w.replay(&auditv1.ReplayDeadLettersRequest{All: true})
	if err != nil || !slices.Equal(results, []string{"FAILED_AGAIN", "FAILED_AGAIN", "SKIPPED"}) {
		t.Fatal(results, err)
	}
	_, last, err := w.replay(&auditv1.ReplayDeadLettersRequest{Filter: &auditv1.DeadLetterFilter{Ids: []string{all[2].GetId()}}})
	if err != nil || last.GetResult() != "SKIPPED" || !strings.Contains(last.GetDetail(), all[0].GetId()) {
		t.Fatal(last, err)
	}
	r.fixed.Store(true)
	began := time.Now()
	results, _, err = w.replay(&auditv1.ReplayDeadLettersRequest{All: true, Rate: 10})
	if err != nil || !slices.Equal(results, []string{"REPLAYED", "REPLAYED", "REPLAYED"}) {
		t.Fatal(results, err)
	}
	if took := time.Since(began); took < 190*time.Millisecond {
		t.Errorf("three at 10/s took %s", took)
	}
	for _, want := range []string{id, j, id} {
		if e := <-r.handled; e.Stream.ID != want {
			t.Fatal(e)
		}
	}
	for _, in := range []*auditv1.ReplayDeadLettersRequest{{}, {All: true, Rate: -1}, {All: true, Rate: 1e6}} {
		if _, _, err := w.replay(in); !errors.Is(err, fault.Invalid) {
			t.Error(in, err)
		}
	}
}
