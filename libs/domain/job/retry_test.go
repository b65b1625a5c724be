package job_test

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
)

func words(categories []job.Category) string {
	out := make([]string, len(categories))
	for i, c := range categories {
		out[i] = string(c)
	}
	return strings.Join(out, " ")
}

const (
	ownDefault   = "EXIT_CODE SIGNAL OUT_OF_MEMORY TIMEOUT"
	infraDefault = "WORKER_LOST DISPATCH_FAILED PROVISIONING_FAILED INFRASTRUCTURE"
)

// TestRetryOn: a policy names what it retries; a kind that it does not mention, and
// that has a budget, has its default.
func TestRetryOn(t *testing.T) {
	for name, c := range map[string]struct {
		retry job.Retry
		want  string
	}{
		"the default: only the platform's failures": {job.Retry{InfrastructureAttempts: 3}, infraDefault},
		"more attempts: the command's own too":      {job.Retry{MaxAttempts: 3, InfrastructureAttempts: 3}, ownDefault + " " + infraDefault},
		"must never start twice":                    {job.Retry{}, ""},
		"only its own":                              {job.Retry{MaxAttempts: 2}, ownDefault},
		"one named leaves the other kind alone":     {job.Retry{MaxAttempts: 2, InfrastructureAttempts: 1, On: []job.Category{"TIMEOUT"}}, "TIMEOUT " + infraDefault},
		"in one order and once": {
			job.Retry{MaxAttempts: 2, InfrastructureAttempts: 1, On: []job.Category{"WORKER_LOST", "PERMISSION_DENIED", "EXIT_CODE", "EXIT_CODE"}},
			"EXIT_CODE PERMISSION_DENIED WORKER_LOST",
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := queued(t, c.retry)
			if got := words(j.Spec.Retry.On); got != c.want {
				t.Errorf("retried %q, want %q", got, c.want)
			}
			again := j.Spec.WithDefaults().Retry
			if !again.Equal(j.Spec.Retry) || !slices.Equal(again.On, j.Spec.Retry.On) {
				t.Errorf("with its defaults once more: %+v", again)
			}
			for _, k := range job.Causes {
				if got, want := j.Spec.Retry.Retries(k.Category), slices.Contains(j.Spec.Retry.On, k.Category); got != want && c.want != "" {
					t.Errorf("%s: retried %v", k.Category, got)
				}
			}
		})
	}
}

// TestEndingAsksThePolicy: the budget alone is not enough, the category must be in the list.
func TestEndingAsksThePolicy(t *testing.T) {
	fail := func(c job.Category) job.Result { return job.Result{Failure: job.Fail(c, "why")} }
	full := job.Retry{MaxAttempts: 9, InfrastructureAttempts: 9}
	only := func(on ...job.Category) job.Retry { r := full; r.On = on; return r }
	for name, c := range map[string]struct {
		retry  job.Retry
		result job.Result
		want   job.State
	}{
		"by default, an exit code":        {full, fail(job.CategoryExitCode), job.StatePending},
		"by default, a timeout":           {full, fail(job.CategoryTimeout), job.StatePending},
		"not a command that is not there": {full, fail(job.CategoryCommandNotFound), job.StateFailed},
		"unless it is named":              {only(job.CategoryCommandNotFound), fail(job.CategoryCommandNotFound), job.StatePending},
		"and then no exit code":           {only(job.CategoryCommandNotFound), fail(job.CategoryExitCode), job.StateFailed},
		"and a lost worker as ever":       {only(job.CategoryCommandNotFound), fail(job.CategoryWorkerLost), job.StatePending},
		"one of the platform's":           {only(job.CategoryDispatchFailed), fail(job.CategoryWorkerLost), job.StateFailed},
		"a timeout that is not named":     {only(job.CategorySignal), fail(job.CategoryTimeout), job.StateTimedOut},
		"what a newer agent calls it":     {full, fail("METEORITE"), job.StatePending},
		"never a wrong job":               {full, fail(job.CategoryValidation), job.StateFailed},
		"never one that was cancelled":    {full, fail(job.CategoryCancelled), job.StateCancelled},
	} {
		t.Run(name, func(t *testing.T) {
			j := running(t, queued(t, c.retry))
			j = given(t, j, must(t)(j.End("w", 1, c.result, now, 0)))
			if j.State != c.want {
				t.Fatalf("%s, want %s: %s", j.State, c.want, j.Reason)
			}
			if c.want == job.StateFailed && c.result.Failure.Category != job.CategoryValidation && !strings.Contains(j.Reason, "is not retried") {
				t.Errorf("nobody says why it is not retried: %s", j.Reason)
			}
		})
	}
}

func TestDelay(t *testing.T) {
	def := job.DefaultBackoff()
	flat := job.Backoff{Initial: unit.Duration(time.Minute), Factor: 1, Max: unit.Duration(time.Minute)}
	for name, c := range map[string]struct {
		b      job.Backoff
		n      int
		chance float64
		want   time.Duration
	}{
		"the first":               {def, 1, 0, time.Second},
		"the fourth":              {def, 4, 0, 8 * time.Second},
		"at most":                 {def, 7, 0, time.Minute},
		"for ever":                {def, math.MaxInt, 0, time.Minute},
		"before any":              {def, -3, 0, time.Second},
		"shortened by chance":     {def, 3, 0.5, 3 * time.Second},
		"never by more than this": {def, 3, 7, 2 * time.Second},
		"chance below zero":       {def, 3, -7, 4 * time.Second},
		"without growth":          {flat, 50, 1, time.Minute},
	} {
		if got := c.b.Delay(c.n, c.chance); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestRequeueWaitsAsThePolicySays: every observer of an end holds the job back alike.
func TestRequeueWaitsAsThePolicySays(t *testing.T) {
	j := queued(t, job.Retry{MaxAttempts: 3, InfrastructureAttempts: 3, Backoff: job.Backoff{Initial: unit.Duration(10 * time.Second), Jitter: 0.2}})
	if b := j.Spec.Retry.Backoff; b.Factor != job.DefaultBackoffFactor || b.Max.D() != job.DefaultMaxBackoff || b.Jitter != 0.2 {
		t.Fatalf("the rest of a backoff that is given in part: %+v", b)
	}
	for i, r := range []job.Result{lost(), exit(1), lost()} {
		j = running(t, j)
		j = given(t, j, must(t)(j.End("w", i+1, r, now, 0.5)))
		if want := []time.Duration{9, 18, 36}[i] * time.Second; !j.NotBefore.Equal(now.Add(want)) {
			t.Errorf("attempt %d: held back for %s, want %s", i+1, j.NotBefore.Sub(now), want)
		}
	}
}

func TestRetryIsRefusedFieldByField(t *testing.T) {
	second := unit.Duration(time.Second)
	for name, c := range map[string]struct {
		retry       job.Retry
		field, says string
	}{
		"no category":         {job.Retry{MaxAttempts: 2, On: []job.Category{"exit_code"}}, "retry.on", "EXIT_CODE, SIGNAL"},
		"one that never is":   {job.Retry{MaxAttempts: 2, On: []job.Category{"QUEUE_TIMEOUT"}}, "retry.on", "never"},
		"without a budget":    {job.Retry{On: []job.Category{"EXIT_CODE"}}, "retry.on", "max_attempts 1"},
		"of the other kind":   {job.Retry{On: []job.Category{"WORKER_LOST"}}, "retry.on", "infrastructure_attempts 0"},
		"a negative wait":     {job.Retry{Backoff: job.Backoff{Initial: -1}}, "retry.backoff.initial", "more than 0"},
		"too long a wait":     {job.Retry{Backoff: job.Backoff{Initial: 3600 * 25 * second}}, "retry.backoff.initial", "24h"},
		"a wait that shrinks": {job.Retry{Backoff: job.Backoff{Factor: 0.5}}, "retry.backoff.factor", "from 1 to 10"},
		"not a number":        {job.Retry{Backoff: job.Backoff{Factor: math.NaN()}}, "retry.backoff.factor", "from 1"},
		"a most below":        {job.Retry{Backoff: job.Backoff{Initial: 5 * second, Max: second}}, "retry.backoff.max", "which is 5s"},
		"too much chance":     {job.Retry{Backoff: job.Backoff{Jitter: 1.5}}, "retry.backoff.jitter", "from 0 to 1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := job.Create(job.Spec{Command: []string{"true"}, Retry: c.retry}, "", "")
			refused, ok := errors.AsType[*fault.Error](err)
			if !ok || !slices.ContainsFunc(refused.Fields, func(f fault.Field) bool { return f.Name == c.field && strings.Contains(f.Problem, c.says) }) {
				t.Errorf("%v, want %s: ... %s ...", err, c.field, c.says)
			}
		})
	}
}

// TestPolicyOfBefore: a job that was queued before policies named categories and a
// backoff goes on as it was promised, and so does its retry.
func TestPolicyOfBefore(t *testing.T) {
	var created job.Created
	if err := json.Unmarshal([]byte(`{"spec":{"name":"a","namespace":"default","command":["a"],"timeout":"1h","queue_timeout":"24h",
		"retry":{"max_attempts":3,"infrastructure_attempts":1}}}`), &created); err != nil {
		t.Fatal(err)
	}
	j := running(t, given(t, job.Job{ID: "j"}, []job.Event{created}))
	j = given(t, j, must(t)(j.End("w", 1, job.Result{Failure: job.Fail(job.CategoryCommandNotFound, "no such file")}, now, 0)))
	if j.State != job.StatePending || !j.NotBefore.Equal(now.Add(time.Second)) {
		t.Errorf("%s (%s), held back for %s", j.State, j.Reason, j.NotBefore.Sub(now))
	}
	j = given(t, j, must(t)(j.RequestCancel("user/ann", "")))
	spec, err := j.Retry()
	if err != nil {
		t.Fatal(err)
	}
	again := given(t, job.Job{ID: "k"}, must(t)(job.Create(spec, "j", "")))
	if !again.Spec.Retry.Retries(job.CategoryCommandNotFound) {
		t.Errorf("its retry has another policy: %+v", again.Spec.Retry)
	}
	if !j.Spec.Retry.Equal(job.Retry{MaxAttempts: 3, InfrastructureAttempts: 1}) {
		t.Error("the same call repeated after the upgrade asks for another job")
	}
}
