package core_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/services/scheduler/core"
)

func TestSameJob(t *testing.T) {
	base := job.Spec{Command: []string{"true"}, Env: map[string]string{"A": "1", "B": "2"}}
	for name, c := range map[string]struct {
		change func(*job.Spec)
		want   []string
	}{
		"nothing":           {func(*job.Spec) {}, nil},
		"defaults spelled":  {func(s *job.Spec) { s.Namespace, s.Timeout, s.Name = "default", unit.Duration(time.Hour), "true" }, nil},
		"empty is no stdin": {func(s *job.Spec) { s.Stdin = []byte{} }, nil},
		"command":           {func(s *job.Spec) { s.Command, s.Name = []string{"false"}, "true" }, []string{"command"}},
		"several":           {func(s *job.Spec) { s.Priority, s.Env = 3, map[string]string{"A": "1"} }, []string{"env", "priority"}},
		"script":            {func(s *job.Spec) { s.Script = &job.Script{Interpreter: "sh"} }, []string{"script"}},
		"nested":            {func(s *job.Spec) { s.Retry.InfrastructureAttempts = 9; s.Placement.Provider = "p" }, []string{"retry", "placement"}},
		"required labels":   {func(s *job.Spec) { s.Placement.RequiredLabels = map[string]string{"a": "b"} }, []string{"placement"}},
		"a preferred one":   {func(s *job.Spec) { s.Placement.PreferredProvider = "p" }, []string{"placement"}},
		"no labels":         {func(s *job.Spec) { s.Placement.RequiredLabels = map[string]string{} }, nil},
		"no tags":           {func(s *job.Spec) { s.Tags = []string{} }, nil},
		"for people":        {func(s *job.Spec) { s.Description, s.Tags = "d", []string{"t"} }, []string{"description", "tags"}},
	} {
		t.Run(name, func(t *testing.T) {
			other := base
			c.change(&other)
			if got := core.Differences(base, other); !slices.Equal(got, c.want) {
				t.Errorf("Differences = %v, want %v", got, c.want)
			}
			a, err := core.Digest(base)
			if err != nil {
				t.Fatal(err)
			}
			b, err := core.Digest(other)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(a, b) != (c.want == nil) {
				t.Errorf("digests equal = %v, but differences are %v", bytes.Equal(a, b), c.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		job            job.Job
		reason, advice string // substrings
	}{
		"queued":    {job.Job{State: job.StatePending}, "waits in the queue", "hodei status"},
		"held back": {job.Job{State: job.StatePending, NotBefore: now.Add(time.Minute), Reason: "worker lost"}, "held back until 2026-01-01T12:01:00Z: worker lost", "history"},
		"released":  {job.Job{State: job.StatePending, NotBefore: now.Add(-time.Minute), Reason: "worker lost"}, "waits in the queue: worker lost", ""},
		"deferred":  {job.Job{State: job.StatePending, Deferred: []string{"p1: too small", "p2: unhealthy"}}, "p1: too small; p2: unhealthy", "provider list"},
		"scheduled": {job.Job{State: job.StateScheduled, WorkerID: "w1", ProviderID: "p1"}, "waits for worker w1, which provider p1 is making", "worker get w1"},
		"assigned":  {job.Job{State: job.StateAssigned, WorkerID: "w1", Attempt: 2}, "worker w1 is being given the job (attempt 2)", "worker get w1"},
		"running":   {job.Job{ID: "j1", State: job.StateRunning, WorkerID: "w1", Attempt: 1}, "runs on worker w1", "logs -f j1"},
		"cancelling": {
			job.Job{ID: "j1", State: job.StateRunning, WorkerID: "w1", Cancel: &job.CancelRequested{By: "user/ann", Reason: "wrong data"}},
			"user/ann has asked for its end: wrong data", "job wait j1",
		},
		"failed": {
			job.Job{ID: "j1", WorkerID: "w1", State: job.StateFailed, Reason: "gone", Result: &job.Result{Failure: job.Fail(job.CategoryWorkerLost, "gone")}},
			"gone", "`hodei worker get w1`; `hodei job retry j1`",
		},
		"succeeded": {job.Job{State: job.StateSucceeded, Reason: "the command exited with 0", Result: &job.Result{}}, "exited with 0", ""},
	} {
		t.Run(name, func(t *testing.T) {
			reason, advice := core.Explain(c.job, now)
			if !strings.Contains(reason, c.reason) || !strings.Contains(advice, c.advice) {
				t.Errorf("got %q / %q, want %q / %q", reason, advice, c.reason, c.advice)
			}
		})
	}
}
