package core_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/registry/core"
)

const (
	jobID    = "0198c0de-0000-7000-8000-000000000001"
	workerID = "0198c0de-0000-7000-8000-000000000002"
)

// TestTail compares with the obvious way: keep everything, cut it into lines.
func TestTail(t *testing.T) {
	type piece struct {
		stream, data string
	}
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 3000 {
		var pieces []piece
		for range random.IntN(7) {
			var b strings.Builder
			for range random.IntN(5) {
				b.WriteString([]string{"a", "bc", "\n", "\n\n"}[random.IntN(4)])
			}
			pieces = append(pieces, piece{[]string{"stdout", "stderr"}[random.IntN(2)], b.String()})
		}
		n := 1 + random.IntN(5)

		// A line is the piece and place of its end, and its stream and text.
		type line struct {
			stream, text string
		}
		var lines []line
		open := map[string]string{}
		lastPiece := map[string]int{}
		for i, p := range pieces {
			if p.data != "" {
				lastPiece[p.stream] = i
			}
		}
		for i, p := range pieces {
			for _, c := range p.data {
				open[p.stream] += string(c)
				if c == '\n' {
					lines, open[p.stream] = append(lines, line{p.stream, open[p.stream]}), ""
				}
			}
			if p.data != "" && lastPiece[p.stream] == i && open[p.stream] != "" {
				lines = append(lines, line{p.stream, open[p.stream]})
			}
		}
		want := map[string]string{}
		for _, l := range lines[max(0, len(lines)-n):] {
			want[l.stream] += l.text
		}

		tail := core.NewTail(n)
		for i, p := range slices.Backward(pieces) {
			if tail.Add(int64(i+1), p.stream, []byte(p.data)) {
				break
			}
		}
		got := map[string]string{}
		for i, p := range pieces {
			if int64(i+1) < tail.First() {
				continue
			}
			if data := tail.Cut(int64(i+1), p.stream, []byte(p.data)); len(data) > 0 {
				got[p.stream] += string(data)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d: the last %d of %q: %q, want %q", round, n, pieces, got, want)
		}
	}
}

func held(state job.State, attempt int) (job.Job, worker.Worker) {
	j := job.Job{ID: jobID, Version: 3, State: state, Attempt: attempt, WorkerID: workerID, Spec: job.Spec{Retry: job.Retry{MaxAttempts: 1, InfrastructureAttempts: 3}}}
	w := worker.Worker{ID: workerID, Version: 5, State: worker.StateBusy, JobID: jobID, Attempt: attempt}
	return j, w
}

func TestReconcile(t *testing.T) {
	running, w := held(job.StateRunning, 2)
	assigned, _ := held(job.StateAssigned, 2)
	cancelled := running
	cancelled.Cancel = &job.CancelRequested{By: "user/ann"}
	ended := running
	ended.State = job.StateFailed
	other := running
	other.ID, other.WorkerID = "another", "another worker"
	has := func(attempt int, started bool) core.Held {
		return core.Held{JobID: jobID, Attempt: attempt, Started: started}
	}
	cases := map[string]struct {
		w           worker.Worker
		own, theirs job.Job
		held        core.Held
		want        core.Plan
	}{
		"both idle":                       {worker.Worker{ID: workerID}, job.Job{}, job.Job{}, core.Held{}, core.Plan{}},
		"running, fine":                   {w, running, running, has(2, true), core.Plan{}},
		"running, not heard":              {w, running, running, has(2, false), core.Plan{Start: true}},
		"assigned, accepted":              {w, assigned, assigned, has(2, false), core.Plan{Begin: true}},
		"assigned, kept result":           {w, assigned, assigned, has(2, true), core.Plan{}},
		"assigned, not there":             {w, assigned, job.Job{}, core.Held{}, core.Plan{}},
		"running, not there":              {w, running, job.Job{}, core.Held{}, core.Plan{Lost: true}},
		"running, an older one there":     {w, running, running, has(1, true), core.Plan{Drop: true, Lost: true, Reason: "attempt 1 is over; the job is RUNNING at attempt 2"}},
		"cancelled":                       {w, cancelled, cancelled, has(2, true), core.Plan{Cancel: true}},
		"ended":                           {worker.Worker{ID: workerID}, job.Job{}, ended, has(2, true), core.Plan{Drop: true, Reason: "the job is already FAILED"}},
		"unknown":                         {worker.Worker{ID: workerID}, job.Job{}, job.Job{}, has(2, true), core.Plan{Drop: true, Reason: "there is no such job"}},
		"another worker's, own not there": {w, running, other, core.Held{JobID: "another", Attempt: 2}, core.Plan{Drop: true, Lost: true, Reason: "attempt 2 is not this worker's; the job is RUNNING"}},
	}
	for name, c := range cases {
		if got := core.Reconcile(c.w, c.own, c.theirs, c.held); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func names[E interface{ EventType() string }](events []E) (out []string) {
	for _, e := range events {
		out = append(out, e.EventType())
	}
	return out
}

func TestFinish(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	j, w := held(job.StateAssigned, 1)
	out, err := core.Finish(j, w, 1, job.Result{}, now, 0)
	if err != nil || !slices.Equal(names(out.Job), []string{"JobStatusChanged", "JobStatusChanged"}) || !slices.Equal(names(out.Worker), []string{"WorkerStatusChanged", "WorkerReadyForJob"}) {
		t.Fatalf("%v %v %v", names(out.Job), names(out.Worker), err)
	}
	out, err = core.Abort(j, w, 1, core.Cancelled(j), now, 0)
	if err != nil || !slices.Equal(names(out.Job), []string{"JobStatusChanged"}) {
		t.Fatalf("%v %v", names(out.Job), err)
	}
	if _, err := core.Finish(j, w, 2, job.Result{}, now, 0); !errors.Is(err, fault.Precondition) {
		t.Fatalf("stale: %v", err)
	}
	w.State = worker.StateTerminated
	if out, err := core.Finish(j, w, 1, job.Result{}, now, 0); err != nil || len(out.Worker) != 0 {
		t.Fatalf("a dead worker: %v %v", out, err)
	}
	j, w = held(job.StateRunning, 1)
	w.State = worker.StateTerminated
	for cause, want := range map[worker.Cause]job.Category{
		worker.CauseJobTimeout: job.CategoryTimeout, worker.CauseCancelUnanswered: job.CategoryCancelled,
		worker.CauseLost: job.CategoryWorkerLost, worker.CauseTerminated: job.CategoryWorkerLost, "": job.CategoryWorkerLost,
	} {
		w.Cause = cause
		facts, err := core.Fenced(j, w, 1, now, 0)
		if err != nil || len(facts) == 0 {
			t.Fatalf("%s: %v %v", cause, facts, err)
		}
		switch last := facts[len(facts)-1].(type) {
		case job.Requeued:
			if last.Cause != want || !last.NotBefore.Equal(now.Add(time.Second)) {
				t.Errorf("%s: %+v", cause, last)
			}
		case job.StatusChanged:
			if last.Result.Failure.Category != want {
				t.Errorf("%s: %+v", cause, last)
			}
		}
	}
	if facts, err := core.Fenced(j, w, 2, now, 0); err != nil || facts != nil {
		t.Fatalf("another attempt: %v %v", facts, err)
	}
}

func TestReport(t *testing.T) {
	code := func(n int) *int { return &n }
	j, _ := held(job.StateRunning, 1)
	cancelled := j
	cancelled.Cancel = &job.CancelRequested{By: "user/ann"}
	cases := map[string]struct {
		j    job.Job
		r    core.Report
		want job.Category
	}{
		"success":                    {j, core.Report{ExitCode: code(0)}, ""},
		"exit code without category": {j, core.Report{ExitCode: code(3)}, job.CategoryExitCode},
		"signal without category":    {j, core.Report{Signal: 9}, job.CategorySignal},
		"nothing said":               {j, core.Report{}, job.CategoryInfrastructure},
		"as said":                    {j, core.Report{Category: "OUT_OF_MEMORY", Signal: 9}, job.CategoryOutOfMemory},
		"unknown category":           {j, core.Report{Category: "MOON"}, job.CategoryInfrastructure},
		"not an agent's to say":      {j, core.Report{Category: "QUEUE_TIMEOUT"}, job.CategoryInfrastructure},
		"cancelled":                  {cancelled, core.Report{Category: "CANCELLED"}, job.CategoryCancelled},
		"cancelled by nobody":        {j, core.Report{Category: "CANCELLED"}, job.CategoryInfrastructure},
	}
	for name, c := range cases {
		r := c.r.Result(c.j)
		got := job.Category("")
		if r.Failure != nil {
			got = r.Failure.Category
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	dirty := core.Report{Category: "EXIT_CODE", Message: "a\x00b\xff" + strings.Repeat("é", 4096)}.Result(j).Failure.Message
	if strings.Contains(dirty, "\x00") || len(dirty) > 4096 || !strings.HasPrefix(dirty, "ab\uFFFD") {
		t.Errorf("%d bytes: %q", len(dirty), dirty[:8])
	}
}

func TestToken(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	fresh := core.Token{Hash: core.HashSecret("t"), ExpiresAt: now.Add(time.Minute)}
	used := fresh
	used.Nonce = "n"
	cases := map[string]struct {
		t            core.Token
		token, nonce string
		at           time.Time
		admitted     bool
	}{
		"fresh":                  {fresh, "t", "n", now, true},
		"another":                {fresh, "u", "n", now, false},
		"none":                   {core.Token{}, "t", "n", now, false},
		"expired":                {fresh, "t", "n", now.Add(time.Minute), false},
		"repeated":               {used, "t", "n", now, true},
		"repeated after its end": {used, "t", "n", now.Add(time.Hour), true},
		"used":                   {used, "t", "m", now, false},
	}
	for name, c := range cases {
		if err := c.t.Admit(c.token, c.nonce, c.at); (err == nil) != c.admitted || err != nil && !errors.Is(err, fault.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if secret := core.SessionSecret("w", "t", "n"); secret == core.SessionSecret("w", "t", "m") || secret != core.SessionSecret("w", "t", "n") {
		t.Error("a session's secret is a function of worker, token and nonce")
	}
}
