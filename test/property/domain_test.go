// Package property drives the domain with random sequences of commands: no
// sequence of accepted commands leaves a transition table, every step is carried
// by its own event, and folding the events gives the state that was decided on.
package property

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// fact is what events of every aggregate have in common.
type fact interface {
	EventType() string
	EventVersion() int
}

// roundTrip is what the log does to a fact: JSON out, JSON in.
func roundTrip(t *rapid.T, f fact) any {
	data, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	back, err := catalogue.Decode(f.EventType(), f.EventVersion(), data)
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// legal fails unless the step from one state to the other is in the table and
// is carried by typ, or the state has not changed and typ is a notice.
func legal[S ~string](t *rapid.T, table transition.Table[S], from, to S, typ string) {
	entry, ok := catalogue.Lookup(typ)
	if !ok {
		t.Fatalf("%s is not in the catalogue", typ)
	}
	if from == to {
		if entry.Role == catalogue.Transition {
			t.Fatalf("%s carries a transition but %s did not change", typ, from)
		}
		return
	}
	carrier, ok := table.Event(from, to)
	if !ok {
		t.Fatalf("%s -> %s is not in the table", from, to)
	}
	if carrier != typ {
		t.Fatalf("%s -> %s was carried by %s, not %s", from, to, typ, carrier)
	}
}

func result(t *rapid.T) job.Result {
	code := rapid.IntRange(0, 255).Draw(t, "code")
	cause := rapid.SampledFrom(job.Causes).Draw(t, "cause")
	if code == 0 {
		return job.Result{ExitCode: &code}
	}
	return job.Result{Failure: job.Fail(cause.Category, "because")}
}

func TestJob(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		spec := job.Spec{Command: []string{"true"}, Retry: policy(t)}
		events, err := job.Create(spec, "", "")
		if err != nil {
			t.Fatal(err)
		}
		spec = spec.WithDefaults()
		direct, folded := apply(t, job.Job{ID: "j"}, job.Job{ID: "j"}, events)
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			attempt := direct.Attempt - rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "stale")
			w := rapid.SampledFrom([]string{direct.WorkerID, direct.WorkerID, "w1", "w2"}).Draw(t, "worker")
			chance := rapid.Float64Range(0, 1).Draw(t, "chance")
			var events []job.Event
			var err error
			switch command := rapid.SampledFrom([]string{"schedule", "assign", "assign", "start", "start", "end", "end", "abandon", "cancel", "defer", "reject"}).Draw(t, "command"); command {
			case "schedule":
				events, err = direct.Schedule("p", w, "room")
			case "assign":
				events, err = direct.Assign("p", w, 1, "idle")
			case "start":
				events, err = direct.Start(w, attempt)
			case "end":
				events, err = direct.End(w, attempt, result(t), epoch, chance)
			case "abandon":
				events, err = direct.Abandon(result(t), epoch, chance)
			case "cancel":
				if rapid.IntRange(0, 4).Draw(t, "really") == 0 {
					events, err = direct.RequestCancel("user/ann", "")
				}
			case "defer":
				events = direct.Defer([]string{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "reason")})
			case "reject":
				events = direct.Reject(w, attempt, result(t))
			}
			if err != nil {
				continue
			}
			before := direct
			direct, folded = apply(t, direct, folded, events)
			if before.State.Terminal() && direct.State != before.State {
				t.Fatalf("left the terminal state %s for %s", before.State, direct.State)
			}
			if before.Cancel != nil && before.State != job.StatePending && direct.State == job.StatePending {
				t.Fatal("a job with a pending cancel was queued again")
			}
			for _, e := range events {
				if requeued, ok := e.(job.Requeued); ok {
					allowed(t, spec.Retry, before, requeued)
				}
			}
		}
		if n := len(direct.Attempts); n != direct.Attempt {
			t.Fatalf("%d attempts on record, number %d was the last", n, direct.Attempt)
		}
		if direct.Spent.Own > spec.Retry.MaxAttempts || direct.Spent.Infrastructure > spec.Retry.InfrastructureAttempts+1 {
			t.Fatalf("spent %+v of %+v", direct.Spent, spec.Retry)
		}
	})
}

// policy is any retry policy that is accepted.
func policy(t *rapid.T) job.Retry {
	r := job.Retry{MaxAttempts: rapid.IntRange(1, 3).Draw(t, "max"), InfrastructureAttempts: rapid.IntRange(0, 3).Draw(t, "infra")}
	for _, k := range job.Causes {
		budget := k.Infrastructure && r.InfrastructureAttempts > 0 || !k.Infrastructure && r.MaxAttempts > 1
		if k.Retried != job.Never && budget && rapid.Bool().Draw(t, "on "+string(k.Category)) {
			r.On = append(r.On, k.Category)
		}
	}
	if rapid.Bool().Draw(t, "backoff") {
		initial := rapid.Int64Range(1, int64(job.MaxBackoff)).Draw(t, "initial")
		r.Backoff = job.Backoff{
			Initial: unit.Duration(initial), Factor: rapid.Float64Range(1, job.MaxBackoffFactor).Draw(t, "factor"),
			Max:    unit.Duration(rapid.Int64Range(initial, int64(job.MaxBackoff)).Draw(t, "most")),
			Jitter: rapid.Float64Range(0, 1).Draw(t, "jitter"),
		}
	}
	return r
}

// allowed fails unless the policy allows that before was queued again: its category is
// retried, its budget was not spent, and it is held back within the bounds.
func allowed(t *rapid.T, r job.Retry, before job.Job, e job.Requeued) {
	k := job.CauseOf(e.Cause)
	if !slices.Contains(r.On, e.Cause) || k.Retried == job.Never {
		t.Fatalf("queued again after %s, which is not in %v", e.Cause, r.On)
	}
	if spent, most := before.Spent.Own+1, r.MaxAttempts; !k.Infrastructure && spent >= most {
		t.Fatalf("queued again after own attempt %d of %d", spent, most)
	}
	if spent, most := before.Spent.Infrastructure, r.InfrastructureAttempts; k.Infrastructure && spent >= most {
		t.Fatalf("queued again after %d of %d infrastructure attempts were spent", spent, most)
	}
	wait, b := e.NotBefore.Sub(epoch), r.Backoff
	full := min(float64(b.Initial)*math.Pow(b.Factor, float64(before.Spent.Own+before.Spent.Infrastructure)), float64(b.Max))
	if float64(wait) > full || float64(wait) < full*(1-b.Jitter)-1 {
		t.Fatalf("held back for %s after %+v by %+v", wait, before.Spent, b)
	}
}

// apply folds events twice, as decided and as the log gives them back, and
// checks each step.
func apply(t *rapid.T, direct, folded job.Job, events []job.Event) (job.Job, job.Job) {
	for _, e := range events {
		at := job.At{Version: direct.Version + 1, Time: epoch}
		next := direct.Evolve(e, at)
		legal(t, job.Transitions, direct.State, next.State, e.EventType())
		direct, folded = next, folded.Evolve(roundTrip(t, e).(job.Event), at)
		if a, b := fmt.Sprintf("%+v", flat(direct)), fmt.Sprintf("%+v", flat(folded)); a != b {
			t.Fatalf("after %s the log says\n%s\nand not\n%s", e.EventType(), b, a)
		}
	}
	return direct, folded
}

// flat is a job as JSON: pointers followed.
func flat(j job.Job) string {
	b, err := json.Marshal(j)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestWorker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := worker.Worker{ID: "w"}
		step := func(events []worker.Event) {
			for _, e := range events {
				next := w.Evolve(roundTrip(t, e).(worker.Event), worker.At{Version: w.Version + 1, Time: epoch})
				legal(t, worker.Transitions, w.State, next.State, e.EventType())
				w = next
			}
			if w.State == worker.StateReady && w.JobID != "" {
				t.Fatalf("READY and holds job %s", w.JobID)
			}
			if w.State == worker.StateBusy && w.JobID == "" {
				t.Fatal("BUSY without a job")
			}
		}
		step(worker.Request(worker.ProvisioningRequested{ProviderID: "p", JobsPerWorker: rapid.IntRange(0, 2).Draw(t, "jobs")}))
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			var events []worker.Event
			var err error
			switch rapid.SampledFrom([]string{"connecting", "attach", "take", "release", "discard", "terminate", "drain", "undrain", "lose", "confirm"}).Draw(t, "command") {
			case "connecting":
				events, err = w.Connecting("made")
			case "attach":
				events, err = w.Attach(w.Epoch+1, "r")
			case "take":
				events, err = w.Take(fmt.Sprintf("j%d", w.JobsDone), 1)
			case "release":
				events, err = w.Release(w.JobID, w.Attempt)
			case "discard":
				events, err = w.Discard(w.JobID, w.Attempt, worker.CauseHandOver, "no answer")
			case "terminate":
				events, err = w.Terminate(worker.CauseTerminated, "asked")
			case "drain":
				events, err = w.Drain("user/ann")
			case "undrain":
				events, err = w.Undrain("user/ann")
			case "lose":
				events, err = w.Lose(epoch, "silent")
			case "confirm":
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					events, err = w.Confirm("gone")
				}
			}
			if err == nil {
				step(events)
			}
		}
	})
}
