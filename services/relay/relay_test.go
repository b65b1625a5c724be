package relay_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/eventlog"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/platform/rpc"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
)

func fact[F any](t *testing.T, e event.Event) (f F) {
	t.Helper()
	if err := json.Unmarshal(e.Data, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestNothingIsOffWithoutFaults(t *testing.T) {
	w := newWorld(t)
	r := w.reader()
	w.queue(100)
	r.has()
	for _, quick := range []bool{true, false} {
		c := w.compare(quick)
		if len(c.GetFindings()) > 0 || !c.GetAgrees() || len(c.GetPositions()) != 1 || c.GetLogHead() < 201 {
			t.Errorf("quick %v: %v", quick, c)
		}
	}
	if first := w.events("StreamEpochStarted"); len(first) != 1 || fact[eventlog.EpochStarted](t, first[0]).Cause != eventlog.CauseFirst {
		t.Errorf("epochs: %v", first)
	}
	if again := w.events("EventRepublished"); len(again) > 0 {
		t.Errorf("republished without a fault: %s", again[0].Data)
	}
	_, err := w.relay.BeginEpoch(t.Context(), &relayv1.BeginEpochRequest{})
	var refused *fault.Error
	if !errors.As(err, &refused) || refused.Code != "EPOCH_NOT_NEEDED" {
		t.Errorf("a needless epoch: %v", err)
	}
}

// A wiped store is filled again from the log: no event is lost, none has its
// effect twice, and one event tells of it.
func TestAWipedStreamIsPublishedAgain(t *testing.T) {
	w := newWorld(t)
	r := w.reader()
	w.queue(150)
	r.has()
	js := eventingtest.JetStream(t, w.nats.Conn())
	if err := js.DeleteStream(t.Context(), bus.EventsStream); err != nil {
		t.Fatal(err)
	}
	w.queue(150)
	r.has()
	eventingtest.Eventually(t, "the record", func() bool { return len(w.events("StreamEpochStarted")) == 2 })
	r.has()
	if e := fact[eventlog.EpochStarted](t, w.events("StreamEpochStarted")[1]); e.Cause != eventlog.CauseWiped {
		t.Errorf("epoch: %+v", e)
	}
	if again := w.events("EventRepublished"); len(again) > 1 {
		t.Errorf("%d records of one incident", len(again))
	}
	if c := w.compare(false); len(c.GetFindings()) > 0 {
		t.Errorf("after the repair: %s", findings(c))
	}
}

func TestDamageIsFound(t *testing.T) {
	w := newWorld(t)
	w.queue(20)
	eventingtest.Eventually(t, "all to be published", func() bool { return w.compare(true).GetStreamHead() >= 41 })
	for _, sql := range []string{
		`alter table hodei.events_1 disable trigger append_only`, // as an owner may
		`alter table hodei.events disable trigger append_only`,
		`update hodei.events_1 set data = '{"forged": true}' where position = 7`,
		`update hodei.streams set version = 9 where stream_id = (select stream_id from hodei.events_1 where position = 9)`,
	} {
		if _, err := w.store.Pool().Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	c := w.compare(false)
	if c.GetCounts()["damaged"] != 1 || c.GetMismatched() != 1 {
		t.Errorf("found:\n%s", findings(c))
	}
}

// A Postgres that was restored from a backup has lost its tail: the relay stops and
// says so, an operator goes on with another epoch, and every reader has what the log
// has, no more and no less.
func TestARestoredPostgres(t *testing.T) {
	for name, since := range map[string]int{"at rest": 0, "that has gone on": 5, "that has gone further": 60} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.reader()
			w.queue(40)
			r.has()
			restore := eventingtest.Backup(t, w.url)
			kept := w.head()
			w.queue(20)
			r.has()
			restore()
			w.queue(since)

			eventingtest.Eventually(t, "the alert", func() bool { ready, problems := w.health.Ready(); return !ready && problems["log"] != "" })
			eventingtest.Eventually(t, "the status", func() bool {
				st, err := w.status.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
				return err == nil && !st.GetServices()[0].GetReady() && strings.Contains(st.GetServices()[0].GetProblems()["diverged"], "position")
			})
			c := w.compare(false)
			if n := c.GetCounts()["beyond"] + c.GetCounts()["different"]; n != 40 || c.GetDifferences()[0].GetPosition() != kept+1 || c.GetAgrees() {
				t.Errorf("found %d differences from %v", n, c.GetDifferences()[0])
			}
			w.goOn(kept)
			w.queue(10)
			r.has()
			eventingtest.Eventually(t, "the record", func() bool { return len(w.events("StreamEpochStarted")) == 2 })
			r.has()
			if c := w.compare(false); len(c.GetFindings()) > 0 {
				t.Errorf("after the new epoch: %s", findings(c))
			}
			w.audited()
		})
	}
}

// goOn begins the new epoch as an operator does: look, then act on what was seen.
func (w *world) goOn(kept int64) {
	w.t.Helper()
	ctx := rpc.WithCall(w.t.Context(), rpc.Call{Actor: "user/ann", CorrelationID: "after-the-fire"})
	plan, err := w.relay.BeginEpoch(ctx, &relayv1.BeginEpochRequest{DryRun: true})
	if err != nil {
		w.t.Fatal(err)
	}
	if plan.GetAgreed() != kept || len(plan.GetGivenUp()) != 40 || plan.GetBase() > kept || plan.GetEventId() != "" {
		w.t.Errorf("the plan: %v", plan)
	}
	if n := len(w.events("StreamEpochRequested")); n != 0 {
		w.t.Errorf("a dry run has left %d events", n)
	}
	if _, err := w.relay.BeginEpoch(ctx, &relayv1.BeginEpochRequest{StreamCreated: timestamppb.New(time.Unix(1, 0))}); !errors.Is(err, fault.Precondition) {
		w.t.Errorf("another stream than was looked at: %v", err)
	}
	if _, err := w.relay.BeginEpoch(ctx, &relayv1.BeginEpochRequest{StreamCreated: plan.GetStreamCreated()}); err != nil {
		w.t.Fatal(err)
	}
	w.ready()
}

// audited: who asked stands in the log, and what followed is caused by it.
func (w *world) audited() {
	w.t.Helper()
	asked, started := w.events("StreamEpochRequested"), w.events("StreamEpochStarted")
	if len(asked) != 1 || asked[0].Actor != "user/ann" || asked[0].CorrelationID != "after-the-fire" {
		w.t.Fatalf("asked: %+v", asked)
	}
	if last := started[len(started)-1]; last.CausationID != asked[0].ID || last.CorrelationID != "after-the-fire" {
		w.t.Errorf("started: %+v", last)
	}
}
