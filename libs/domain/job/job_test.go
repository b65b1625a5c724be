package job_test

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/transition"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// given folds the events that commands return, one after the other.
func given(t *testing.T, j job.Job, steps ...[]job.Event) job.Job {
	t.Helper()
	for _, events := range steps {
		for _, e := range events {
			j = j.Evolve(e, job.At{Version: j.Version + 1, Time: now})
		}
	}
	return j
}

//nolint:thelper // it returns the helper
func must(t *testing.T) func(events []job.Event, err error) []job.Event {
	return func(events []job.Event, err error) []job.Event {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return events
	}
}

func queued(t *testing.T, retry job.Retry) job.Job {
	t.Helper()
	return given(t, job.Job{ID: "j"}, must(t)(job.Create(job.Spec{Command: []string{"true"}, Retry: retry}, "", "")))
}

func running(t *testing.T, j job.Job) job.Job {
	t.Helper()
	j = given(t, j, must(t)(j.Assign("p", "w", 1, "idle")))
	return given(t, j, must(t)(j.Start("w", j.Attempt)))
}

func exit(code int) job.Result {
	r := job.Result{ExitCode: &code}
	if code != 0 {
		r.Failure = job.Fail(job.CategoryExitCode, "the command exited with %d", code)
	}
	return r
}

func lost() job.Result { return job.Result{Failure: job.Fail(job.CategoryWorkerLost, "gone")} }

func TestHappyPath(t *testing.T) {
	j := running(t, queued(t, job.Retry{}))
	j = given(t, j, must(t)(j.End("w", 1, exit(0), now, 0)))
	if j.State != job.StateSucceeded || j.Attempt != 1 || *j.Result.ExitCode != 0 || len(j.Attempts) != 1 {
		t.Errorf("%+v", j)
	}
}

// TestEnding is R1.2a: requeue while the policy has attempts left, else the terminal state.
func TestEnding(t *testing.T) {
	for _, c := range []struct {
		name    string
		retry   job.Retry
		results []job.Result
		want    []job.State
	}{
		{"own failure, one attempt", job.Retry{MaxAttempts: 1}, []job.Result{exit(3)}, []job.State{job.StateFailed}},
		{"own failures spend max_attempts", job.Retry{MaxAttempts: 2}, []job.Result{exit(3), exit(4)}, []job.State{job.StatePending, job.StateFailed}},
		{"infrastructure has its own budget", job.Retry{MaxAttempts: 1, InfrastructureAttempts: 2}, []job.Result{lost(), lost(), lost()}, []job.State{job.StatePending, job.StatePending, job.StateFailed}},
		{"infrastructure does not spend max_attempts", job.Retry{MaxAttempts: 2, InfrastructureAttempts: 1}, []job.Result{lost(), exit(1), exit(0)}, []job.State{job.StatePending, job.StatePending, job.StateSucceeded}},
		{"never start twice", job.Retry{MaxAttempts: 1}, []job.Result{lost()}, []job.State{job.StateFailed}},
		{"timeout is its own state", job.Retry{MaxAttempts: 1}, []job.Result{{Failure: job.Fail(job.CategoryTimeout, "too long")}}, []job.State{job.StateTimedOut}},
		{"cancelled is never repeated", job.Retry{MaxAttempts: 9}, []job.Result{{Failure: job.Fail(job.CategoryCancelled, "on request")}}, []job.State{job.StateCancelled}},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := queued(t, c.retry)
			for i, r := range c.results {
				j = running(t, j)
				j = given(t, j, must(t)(j.End("w", i+1, r, now, 0)))
				if j.State != c.want[i] {
					t.Fatalf("after result %d: %s, want %s (%s)", i+1, j.State, c.want[i], j.Reason)
				}
			}
			if len(j.Attempts) != len(c.results) {
				t.Errorf("%d attempts on record, want %d", len(j.Attempts), len(c.results))
			}
			for i, a := range j.Attempts {
				if a.Result == nil || a.Number != i+1 {
					t.Errorf("attempt %d has lost its evidence: %+v", i+1, a)
				}
			}
		})
	}
}

func TestCancel(t *testing.T) {
	t.Run("where no worker has it, at once", func(t *testing.T) {
		j := queued(t, job.Retry{})
		j = given(t, j, must(t)(j.RequestCancel("user/ann", "not needed")))
		if j.State != job.StateCancelled || j.Result.Failure.Category != job.CategoryCancelled {
			t.Errorf("%s %+v", j.State, j.Result)
		}
	})
	t.Run("a running job with a pending cancel is never requeued", func(t *testing.T) {
		j := running(t, queued(t, job.Retry{MaxAttempts: 5, InfrastructureAttempts: 5}))
		j = given(t, j, must(t)(j.RequestCancel("user/ann", "")))
		if j.State != job.StateRunning {
			t.Fatal(j.State)
		}
		if again := must(t)(j.RequestCancel("user/bob", "")); len(again) != 0 {
			t.Errorf("a second request says %v", again)
		}
		j = given(t, j, must(t)(j.End("w", 1, lost(), now, 0)))
		if j.State != job.StateCancelled {
			t.Errorf("%s: %s", j.State, j.Reason)
		}
	})
	t.Run("a job that has ended", func(t *testing.T) {
		j := running(t, queued(t, job.Retry{}))
		j = given(t, j, must(t)(j.End("w", 1, exit(0), now, 0)))
		_, err := j.RequestCancel("user/ann", "")
		var te *transition.Error
		if !errors.As(err, &te) || te.ID != "j" || te.From != "SUCCEEDED" || te.To != "CANCELLED" {
			t.Errorf("%v", err)
		}
	})
}

func TestStaleAttempts(t *testing.T) {
	j := running(t, queued(t, job.Retry{InfrastructureAttempts: 1}))
	j = given(t, j, must(t)(j.End("w", 1, lost(), now, 0)))
	j = given(t, j, must(t)(j.Assign("p", "w2", 1, "idle")))
	_, err := j.End("w", 1, exit(0), now, 0)
	var stale *job.StaleError
	if !errors.As(err, &stale) || stale.Current != 2 || !errors.Is(err, fault.Precondition) {
		t.Fatalf("%v", err)
	}
	if _, err := j.Start("w", 1); !errors.As(err, &stale) {
		t.Errorf("a stale attempt starts: %v", err)
	}
	if e := j.Reject("w", 1, exit(0)); len(e) != 1 || e[0].EventType() != "JobResultRejected" {
		t.Errorf("%v", e)
	}
}

func TestAbandon(t *testing.T) {
	j := queued(t, job.Retry{InfrastructureAttempts: 1})
	waited := given(t, j, must(t)(j.Abandon(job.Result{Failure: job.Fail(job.CategoryQueueTimeout, "waited")}, now, 0)))
	if waited.State != job.StateTimedOut {
		t.Errorf("waited too long: %s", waited.State)
	}
	j = given(t, j, must(t)(j.Schedule("p", "w", "room")))
	noWorker := job.Result{Failure: job.Fail(job.CategoryProvisioningFailed, "no worker")}
	j = given(t, j, must(t)(j.Abandon(noWorker, now, 0)))
	if j.State != job.StatePending || !j.NotBefore.Equal(now.Add(job.DefaultInitialBackoff)) || j.WorkerID != "" {
		t.Fatalf("%s %+v", j.State, j)
	}
	j = given(t, j, must(t)(j.Schedule("p", "w2", "room")))
	j = given(t, j, must(t)(j.Abandon(noWorker, now, 0)))
	if j.State != job.StateFailed {
		t.Errorf("the budget is spent: %s (%s)", j.State, j.Reason)
	}
}

func TestSpecIsRefusedFieldByField(t *testing.T) {
	_, err := job.Create(job.Spec{
		Name: "-", Namespace: "Not A Label", Command: []string{"a"}, Script: &job.Script{}, Env: map[string]string{"1X": "", "HODEI_X": "", "OK": "a\x00"},
		Cwd: "relative", Priority: 1001, Timeout: -1, Retry: job.Retry{MaxAttempts: 101, InfrastructureAttempts: -1},
		Resources: job.Resources{CPUMillis: -1, MemoryBytes: 5},
	}, "", "")
	var fe *fault.Error
	if !errors.As(err, &fe) || fe.Kind != fault.Invalid {
		t.Fatalf("%v", err)
	}
	var got []string
	for _, f := range fe.Fields {
		got = append(got, f.Name)
	}
	want := "name namespace script script.interpreter script.content env env.HODEI_X env.OK cwd priority timeout retry.max_attempts retry.infrastructure_attempts resources.cpu_millis resources.memory_bytes"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("fields:\n got %s\nwant %s", s, want)
	}
	if _, err := job.Create(job.Spec{}, "", ""); err == nil || !strings.Contains(err.Error(), "command: missing") {
		t.Errorf("%v", err)
	}
	big := job.Spec{Script: &job.Script{Interpreter: "sh", Content: strings.Repeat("x", job.MaxSpecBytes)}}
	if _, err := job.Create(big, "", ""); err == nil || !strings.Contains(err.Error(), fmt.Sprint(job.MaxSpecBytes)) {
		t.Errorf("%v", err)
	}
}

// TestFieldsForPeopleAndPlacement: what is refused names its field, and what is not is kept whole.
func TestFieldsForPeopleAndPlacement(t *testing.T) {
	tags := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprint("t", i))
		}
		return out
	}
	for name, c := range map[string]struct {
		spec job.Spec
		want string // the fields
	}{
		"all that is allowed": {job.Spec{
			Description: strings.Repeat("é", job.MaxDescriptionBytes/2), Tags: tags(job.MaxTags),
			Placement: job.Placement{Provider: "p", PreferredProvider: "q", RequiredLabels: map[string]string{"zone": "eu west", "hodei.dev/gpu": ""}},
		}, ""},
		"tags are any text that can be read": {job.Spec{Tags: []string{"a b", "größe: 3", "\"x\"", strings.Repeat("ñ", job.MaxTagChars)}}, ""},
		"a long description":                 {job.Spec{Description: strings.Repeat("x", job.MaxDescriptionBytes+1)}, "description"},
		"a description that is no text":      {job.Spec{Description: "a\x00b"}, "description"},
		"too many tags":                      {job.Spec{Tags: tags(job.MaxTags + 1)}, "tags"},
		"bad tags":                           {job.Spec{Tags: []string{"ok", "", "a\nb", strings.Repeat("x", job.MaxTagChars+1), "\xff", "\x1b[2J"}}, "tags[1] tags[2] tags[3] tags[4] tags[5]"},
		"the same tag again":                 {job.Spec{Tags: []string{"a", "b", "a", "a"}}, "tags[2] tags[3]"},
		"bad labels": {
			job.Spec{Placement: job.Placement{RequiredLabels: map[string]string{"-": "", "long": strings.Repeat("x", 257), "nul": "\x00"}}},
			"placement.required_labels placement.required_labels.long placement.required_labels.nul",
		},
		"names that no provider has": {job.Spec{Placement: job.Placement{Provider: "\x00", PreferredProvider: "\xff"}}, "placement.provider placement.preferred_provider"},
	} {
		t.Run(name, func(t *testing.T) {
			c.spec.Command = []string{"true"}
			facts, err := job.Create(c.spec, "", "")
			var got []string
			if fe, ok := errors.AsType[*fault.Error](err); ok {
				for _, f := range fe.Fields {
					got = append(got, f.Name)
				}
			}
			if s := strings.Join(got, " "); s != c.want || (err == nil) != (c.want == "") {
				t.Fatalf("fields %q, want %q: %v", s, c.want, err)
			}
			if err != nil {
				return
			}
			j := given(t, job.Job{ID: "j"}, facts)
			if !slices.Equal(j.Spec.Tags, c.spec.Tags) || j.Spec.Description != c.spec.Description || !reflect.DeepEqual(j.Spec.Placement, c.spec.Placement) {
				t.Errorf("kept %+v", j.Spec)
			}
			if q, ok := facts[1].(job.Queued); !ok || !reflect.DeepEqual(q.Placement, c.spec.Placement) {
				t.Errorf("JobQueued says %+v", facts[1])
			}
		})
	}
}

func TestPlacementDeferredOncePerReasons(t *testing.T) {
	j := queued(t, job.Retry{})
	j = given(t, j, j.Defer([]string{"no provider"}))
	if again := j.Defer([]string{"no provider"}); again != nil {
		t.Errorf("said twice: %v", again)
	}
	if other := j.Defer([]string{"all unhealthy"}); len(other) != 1 {
		t.Errorf("a new reason is silent")
	}
}
