package core_test

import (
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/timeout-monitor/core"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }

var rules = core.Rules{Table: deadline.Defaults(), IdleTimeout: core.DefaultIdleTimeout}

// step is one fact at a second of the story.
type step struct {
	s    float64
	fact core.Fact
}

func watch(steps ...step) core.Watch {
	var w core.Watch
	for i, st := range steps {
		w = w.Observe(st.fact, core.At{Version: i + 1, Time: at(st.s), ID: "e" + string(rune('1'+i))})
	}
	return w
}

var (
	queued    = job.Queued{Name: "j", Namespace: "default", Timeout: unit.Duration(time.Hour), QueueTimeout: unit.Duration(24 * time.Hour)}
	scheduled = job.Scheduled{ProviderID: "p", WorkerID: "w"}
	assigned  = job.Assigned{From: job.StatePending, Attempt: 1, ProviderID: "p", WorkerID: "w", Epoch: 1}
	running   = job.StatusChanged{From: job.StateAssigned, To: job.StateRunning, Attempt: 1, WorkerID: "w"}
	cancel    = job.CancelRequested{State: job.StateRunning, Attempt: 1, WorkerID: "w", By: "ann"}
	requested = worker.ProvisioningRequested{ProviderID: "p", JobsPerWorker: 1}
	notice    = deadline.TimedOut{Kind: deadline.KindState}
)

func becomes(from, to worker.State) worker.StatusChanged {
	return worker.StatusChanged{From: from, To: to, JobID: "j", Attempt: 1}
}

func TestDeadlineOfEachState(t *testing.T) {
	day := (24 * time.Hour).Seconds()
	creating := step{0, requested}
	connecting := step{1, becomes(worker.StateCreating, worker.StateConnecting)}
	ready := step{2, becomes(worker.StateConnecting, worker.StateReady)}
	busy := step{3, becomes(worker.StateReady, worker.StateBusy)}
	draining := step{4, becomes(worker.StateBusy, worker.StateDraining)}
	terminating := step{5, becomes(worker.StateDraining, worker.StateTerminating)}
	own := &core.Provider{IdleTimeout: 10 * time.Second, ScheduledTimeout: 20 * time.Second}
	drains := rules
	drains.Table.WorkerDraining = 90 * time.Second
	immortal := rules
	immortal.Table.WorkerLifetime = 0
	for name, c := range map[string]struct {
		of    core.Type
		rules *core.Rules
		p     *core.Provider
		given []step
		want  core.Kind
		due   float64
		cause string
	}{
		"PENDING":                                {of: core.Job, given: []step{{0, queued}}, want: core.Queue, due: day, cause: "e1"},
		"PENDING again, not before":              {of: core.Job, given: []step{{0, queued}, {1, assigned}, {5, job.Requeued{NotBefore: at(8)}}}, want: core.Queue, due: 8 + day, cause: "e3"},
		"PENDING again, at once":                 {of: core.Job, given: []step{{0, queued}, {1, assigned}, {5, job.Requeued{}}}, want: core.Queue, due: 5 + day, cause: "e3"},
		"SCHEDULED":                              {of: core.Job, given: []step{{0, queued}, {2, scheduled}}, want: core.Scheduled, due: 302, cause: "e2"},
		"SCHEDULED, its provider's own":          {of: core.Job, p: own, given: []step{{0, queued}, {2, scheduled}}, want: core.Scheduled, due: 22, cause: "e2"},
		"ASSIGNED":                               {of: core.Job, given: []step{{0, queued}, {2, assigned}}, want: core.Assigned, due: 32, cause: "e2"},
		"RUNNING":                                {of: core.Job, given: []step{{0, queued}, {2, assigned}, {3, running}}, want: core.Running, due: 3 + 3615, cause: "e3"},
		"RUNNING, cancel pending":                {of: core.Job, given: []step{{0, queued}, {2, assigned}, {3, running}, {10, cancel}}, want: core.Cancel, due: 30, cause: "e4"},
		"RUNNING, cancelled just before its end": {of: core.Job, given: []step{{0, queued}, {2, assigned}, {3, running}, {3610, cancel}}, want: core.Running, due: 3618, cause: "e3"},
		"ASSIGNED, cancel pending":               {of: core.Job, given: []step{{0, queued}, {2, assigned}, {4, cancel}}, want: core.Cancel, due: 24, cause: "e3"},
		"RUNNING, cancelled when ASSIGNED":       {of: core.Job, given: []step{{0, queued}, {2, assigned}, {4, cancel}, {6, running}}, want: core.Cancel, due: 26, cause: "e3"},
		"PENDING, the cancel is no longer asked": {of: core.Job, given: []step{{0, queued}, {2, assigned}, {4, cancel}, {6, job.Requeued{}}}, want: core.Queue, due: 6 + day, cause: "e4"},
		"RUNNING, once timed out":                {of: core.Job, given: []step{{0, queued}, {2, assigned}, {3, running}, {3618, notice}}, want: core.Running, due: 3618 + 240, cause: "e3"},
		"SUCCEEDED":                              {of: core.Job, given: []step{{0, queued}, {2, assigned}, {3, running}, {4, job.StatusChanged{From: job.StateRunning, To: job.StateSucceeded}}}},
		"FAILED":                                 {of: core.Job, given: []step{{0, queued}, {4, job.StatusChanged{From: job.StatePending, To: job.StateFailed}}}},
		"CREATING":                               {of: core.Worker, given: []step{creating}, want: core.Creating, due: 300, cause: "e1"},
		"CONNECTING":                             {of: core.Worker, given: []step{creating, connecting}, want: core.Connecting, due: 61, cause: "e2"},
		"READY":                                  {of: core.Worker, given: []step{creating, connecting, ready}, want: core.Idle, due: 302, cause: "e3"},
		"READY, its provider's own":              {of: core.Worker, p: own, given: []step{creating, connecting, ready}, want: core.Idle, due: 12, cause: "e3"},
		"READY, old":                             {of: core.Worker, given: []step{creating, connecting, {day - 10, becomes(worker.StateBusy, worker.StateReady)}}, want: core.Lifetime, due: day, cause: "e3"},
		"BUSY":                                   {of: core.Worker, given: []step{creating, connecting, ready, busy}, want: core.Lifetime, due: day, cause: "e4"},
		"BUSY, lifetime none":                    {of: core.Worker, rules: &immortal, given: []step{creating, connecting, ready, busy}},
		"DRAINING, grace none":                   {of: core.Worker, given: []step{creating, connecting, ready, busy, draining}},
		"DRAINING":                               {of: core.Worker, rules: &drains, given: []step{creating, connecting, ready, busy, draining}, want: core.Draining, due: 94, cause: "e5"},
		"TERMINATING":                            {of: core.Worker, given: []step{creating, connecting, ready, busy, draining, terminating}, want: core.Terminating, due: 125, cause: "e6"},
		"TERMINATING, noted once":                {of: core.Worker, given: []step{creating, terminating, {125, notice}}, want: core.Terminating, due: 125 + 240, cause: "e2"},
		"TERMINATING, noted twice":               {of: core.Worker, given: []step{creating, terminating, {125, notice}, {365, notice}}, want: core.Terminating, due: 365 + 480, cause: "e2"},
		"a notice of silence moves nothing":      {of: core.Worker, given: []step{creating, connecting, ready, {40, deadline.TimedOut{Kind: deadline.KindHeartbeat}}}, want: core.Idle, due: 302, cause: "e3"},
		"TERMINATED":                             {of: core.Worker, given: []step{creating, terminating, {6, worker.Terminated{}}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rules
			if c.rules != nil {
				r = *c.rules
			}
			got, ok := r.Deadline(c.of, watch(c.given...), c.p)
			if ok != (c.want != "") {
				t.Fatalf("armed %t: %+v", ok, got)
			}
			if ok && (got.Kind != c.want || !got.Due.Equal(at(c.due)) || got.Cause != c.cause) {
				t.Errorf("got %s due %.1f by %s, want %s due %.1f by %s", got.Kind, got.Due.Sub(t0).Seconds(), got.Cause, c.want, c.due, c.cause)
			}
		})
	}
}

func TestObserveAgainChangesNothing(t *testing.T) {
	w := watch(step{0, queued}, step{2, assigned}, step{3, running})
	if again := w.Observe(assigned, core.At{Version: 2, Time: at(9), ID: "x"}); again != w {
		t.Errorf("got %+v, want %+v", again, w)
	}
}

func TestAgainGrowsAndEnds(t *testing.T) {
	for _, c := range []struct {
		threshold time.Duration
		n         int
		want      time.Duration
	}{
		{time.Millisecond, 0, time.Second},
		{30 * time.Second, 0, 30 * time.Second},
		{30 * time.Second, 3, 4 * time.Minute},
		{24 * time.Hour, 1, 4 * time.Minute},
		{24 * time.Hour, 60, time.Hour},
	} {
		if got := core.Again(c.threshold, c.n); got != c.want {
			t.Errorf("Again(%s, %d) = %s, want %s", c.threshold, c.n, got, c.want)
		}
	}
}
