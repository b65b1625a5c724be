package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	monitor "hodei.dev/services/timeout-monitor/core"
	"hodei.dev/test/check"
)

// judge looks for everything that does not hold.
func (w *world) judge(plan []Fault) Outcome {
	o := Outcome{Seed: w.seed, Plan: plan, Jobs: len(w.jobs), Events: len(w.log.events), Zombies: w.found.zombies, Ghosts: w.found.ghosts}
	events := make([]event.Event, len(w.log.events))
	for i, f := range w.log.events {
		events[i] = f.Event
	}
	o.Wrong = append(o.Wrong, check.Log(events, true).Violations...)
	v := &verdict{w: w, o: &o}
	v.journal()
	for _, p := range w.jobOrder {
		v.job(p)
	}
	v.leftovers()
	v.circuits()
	for _, t := range w.timeouts {
		if t.calm && t.deadline.Kind == monitor.Assigned {
			v.wrong("job/%s: it waited for the deadline of ASSIGNED although the dispatcher was there", t.stream)
		}
	}
	if !slices.ContainsFunc(plan, func(f Fault) bool { return !slices.Contains(restarts, f.Kind) }) {
		v.recovery()
		v.nothingLost(plan)
	}
	if len(o.Wrong) > 0 {
		o.Story = w.story(o.Wrong[0])
	}
	return o
}

type verdict struct {
	w *world
	o *Outcome
}

func (v *verdict) wrong(format string, args ...any) {
	v.o.Wrong = append(v.o.Wrong, fmt.Sprintf(format, args...))
}

// journal compares what ran with what the log permitted: no two commands of one job
// at once, no attempt twice, none without permission.
func (v *verdict) journal() {
	v.o.Attempts = len(v.w.machine.journal)
	byJob := map[string][]*jobProcess{}
	for _, p := range v.w.machine.journal {
		for _, other := range byJob[p.key.job] {
			if other.end.IsZero() || other.end.After(p.start) {
				v.wrong("job/%s: attempt %d starts on worker %s at %s beside attempt %d on worker %s", p.key.job, p.key.attempt, p.worker, v.w.clockOf(p.start), other.key.attempt, other.worker)
			}
			if other.key == p.key {
				v.wrong("job/%s: attempt %d is started twice", p.key.job, p.key.attempt)
			}
		}
		byJob[p.key.job] = append(byJob[p.key.job], p)
		if p.end.IsZero() {
			v.wrong("job/%s: attempt %d still runs on worker %s", p.key.job, p.key.attempt, p.worker)
		}
		if at := v.w.permitted(p.key); at.IsZero() || at.After(p.start) {
			v.wrong("job/%s: attempt %d is started at %s, and the log does not say RUNNING by then", p.key.job, p.key.attempt, v.w.clockOf(p.start))
		}
	}
}

// permitted is when the log said that the attempt runs.
func (w *world) permitted(k key) time.Time {
	for _, i := range w.log.get(k.job).events {
		if c, ok := w.log.events[i].says.(job.StatusChanged); ok && c.To == job.StateRunning && c.Attempt == k.attempt {
			return w.log.events[i].Time
		}
	}
	return time.Time{}
}

// job checks one job's budgets and end.
func (v *verdict) job(p *planOfJob) {
	s := v.w.log.get(p.id)
	if s.version == 0 {
		v.wrong("job/%s: it was never queued", p.id)
		return
	}
	j := s.job
	own, lost := 0, 0
	for _, a := range j.Attempts {
		switch {
		case a.Result == nil || a.Result.Failure == nil:
		case job.CauseOf(a.Result.Failure.Category).Infrastructure:
			lost++
		default:
			own++
		}
	}
	if own > p.maxAttempts || lost > p.infrastructure+1 {
		v.wrong("job/%s: %d attempts of its own (at most %d) and %d lost to the platform (at most %d)", p.id, own, p.maxAttempts, lost, p.infrastructure+1)
	}
	cancelled := false
	for _, i := range s.events {
		switch v.w.log.events[i].says.(type) {
		case job.CancelRequested:
			cancelled = true
		case job.Assigned, job.Requeued:
			if cancelled {
				v.wrong("job/%s: it is queued or assigned again after somebody asked for its end", p.id)
			}
		}
	}
	if j.State == job.StateSucceeded && !v.ran(j) {
		v.wrong("job/%s: it SUCCEEDED in attempt %d, and no command of that attempt ended with 0", p.id, j.Attempt)
	}
}

func (v *verdict) ran(j job.Job) bool {
	return slices.ContainsFunc(v.w.machine.journal, func(p *jobProcess) bool {
		return p.key == key{j.ID, j.Attempt} && !p.killed && p.exit == 0 && !p.end.IsZero()
	})
}

// leftovers: what exists belongs to a worker that is READY.
func (v *verdict) leftovers() {
	for _, r := range v.w.machine.order {
		if r.gone || v.w.machine.resources[r.worker] != r {
			continue
		}
		if s := v.w.log.get(r.worker); s.version == 0 || s.worker.State != worker.StateReady {
			v.wrong("worker/%s: its resource is left, and the worker is %q", r.worker, s.worker.State)
		}
	}
}

// circuits: a path that works again is known to.
func (v *verdict) circuits() {
	for _, s := range v.w.log.order {
		if s.cut() {
			v.wrong("circuit/%s: the path through %s is %s", s.id, s.circuit.Subject, s.circuit.State)
		}
	}
	for _, f := range v.w.log.events {
		if e, ok := f.says.(circuit.Opened); ok && e.Kind == circuit.Path {
			v.o.Paths++
		} else if ok {
			v.o.Providers++
		}
	}
}

// cut tells whether it is the circuit of a path, and not closed.
func (s *stream) cut() bool {
	return s.circuit.Kind == circuit.Path && !s.circuit.State.Settled()
}

// recovery: where only services restarted, nothing waits for a deadline, and no agent is
// given a job that still has another one.
func (v *verdict) recovery() {
	for _, b := range v.w.busy {
		v.wrong("worker/%s: its agent is given attempt %d of job %s and still has attempt %d of job %s, which is over", b.worker, b.offered.attempt, b.offered.job, b.has.attempt, b.has.job)
	}
	for _, t := range v.w.timeouts {
		switch t.deadline.Kind {
		case "idle", "lifetime", "terminating", "running":
		default:
			v.wrong("%s: it waited for the deadline of %s (%s), and only services were restarted", t.stream, t.deadline.State, t.deadline.Kind)
		}
	}
	for _, run := range v.w.machine.journal {
		for _, a := range v.w.log.get(run.key.job).job.Attempts {
			if a.Number == run.key.attempt && !a.FinishedAt.Before(run.end) {
				v.o.Waits = append(v.o.Waits, a.FinishedAt.Sub(run.end), run.start.Sub(a.AssignedAt))
			}
		}
	}
}

// nothingLost: where only services restarted, and registry so seldom that it was never
// away for as long as a hand-over waits, no attempt is lost to the platform, but one that
// registry had in its hands when it was killed: its dispatcher waits in vain for an answer.
func (v *verdict) nothingLost(plan []Fault) {
	away := 0
	for _, f := range plan {
		if (f.Kind == crash || f.Kind == crashAtPoint) && strings.HasPrefix(f.Who, catalogue.Registry) {
			away++
		}
	}
	if away > 1 {
		return
	}
	for _, p := range v.w.jobOrder {
		for _, a := range v.w.log.get(p.id).job.Attempts {
			if a.Result != nil && a.Result.Failure != nil && job.CauseOf(a.Result.Failure.Category).Infrastructure && !strings.Contains(a.Result.Failure.Message, inVain) {
				v.wrong("job/%s: attempt %d is lost to the platform (%s), and only services were restarted", p.id, a.Number, a.Result.Failure.Category)
			}
		}
	}
}
