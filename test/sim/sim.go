package sim

import (
	"fmt"
	"math/rand/v2"
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

// patience is how long after the last fault everything must be at rest: no chain of
// deadlines and backoffs of these jobs is longer.
const patience = 12 * time.Minute

// mostSteps bounds a run; a usual one takes some ten thousand.
const mostSteps = 1_000_000

// Outcome is what a run came to.
type Outcome struct {
	Seed uint64
	Plan []Fault
	// Wrong is everything that does not hold, in words; empty means all is well.
	Wrong []string
	// Story is what happened to the first aggregate that is wrong.
	Story string
	// Jobs, Events and Attempts count; Zombies and Ghosts are what the sweeps repaired.
	Jobs, Events, Attempts, Zombies, Ghosts int
	// Paths and Providers are how often a circuit of that kind opened.
	Paths, Providers int
	// Waits are, where only services restarted, how long each attempt waited from its
	// assignment to its start, and from its command's end to the log's: how long a
	// recovery takes.
	Waits []time.Duration
}

// kindsOf is what may go wrong under a seed: every fourth has restarts of services only.
func kindsOf(seed uint64) []string {
	if seed%4 == 0 {
		return restarts
	}
	return anything
}

// Run plays a seed.
func Run(seed uint64) Outcome { return play(seed, planFor(seed), breakage{}) }

func planFor(seed uint64) []Fault {
	return planOf(rand.New(rand.NewPCG(seed, 4)), kindsOf(seed))
}

func play(seed uint64, plan []Fault, broken breakage) Outcome {
	w := newWorld(seed, plan, broken)
	ended := w.run()
	o := w.judge(plan)
	if !ended {
		o.Wrong = append([]string{"nothing comes to an end: somebody tries again and again without waiting"}, o.Wrong...)
	}
	return o
}

// run lets everything happen until all is at rest, or patience is over; false where
// time stands still.
func (w *world) run() bool {
	w.populate()
	healed := epoch.Add(faultTime + 170*time.Second) // the longest window that may begin at the end
	end := healed.Add(patience)
	quiet := time.Time{}
	w.after(faultTime, func() { w.settle(healed, end, &quiet) })
	for steps := 0; w.step(end); steps++ {
		if steps > mostSteps {
			return false
		}
		if !quiet.IsZero() && w.now.After(quiet) {
			if w.atRest() {
				break
			}
			quiet = time.Time{} // a worker's idle timeout has come meanwhile, say
			w.settle(healed, end, &quiet)
		}
	}
	return true
}

// settle looks every second whether all is at rest, and lets a while pass then, for
// what may still come: a late creation, a sweep.
func (w *world) settle(healed, end time.Time, quiet *time.Time) {
	if w.now.After(healed) && w.atRest() {
		*quiet = w.now.Add(20 * time.Second)
		return
	}
	if w.now.Before(end) {
		w.after(time.Second, func() { w.settle(healed, end, quiet) })
	}
}

func (w *world) atRest() bool {
	for _, s := range w.log.order {
		switch {
		case s.typ == "job" && !s.terminal, s.typ == "worker" && !s.terminal && s.worker.State != worker.StateReady, s.cut():
			return false
		}
	}
	return true
}

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
	for _, b := range v.w.busy {
		v.wrong("worker/%s: its agent is given attempt %d of job %s and still has attempt %d of job %s, which is over", b.worker, b.offered.attempt, b.offered.job, b.has.attempt, b.has.job)
	}
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

// recovery: where only services restarted, nothing waits for a deadline.
func (v *verdict) recovery() {
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
		if (f.Kind == crash || f.Kind == crashAtPoint) && f.Who == catalogue.Registry {
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

func (w *world) clockOf(t time.Time) string {
	return fmt.Sprintf("%8.3fs", t.Sub(epoch).Seconds())
}

// story tells what happened to the aggregate that a violation names, to the workers
// or jobs that it had to do with, and the faults around it.
func (w *world) story(violation string) string {
	about := map[string]bool{}
	for id := range w.log.streams {
		if strings.Contains(violation, id) {
			about[id] = true
		}
	}
	for _, r := range w.machine.order {
		if strings.Contains(violation, r.worker) {
			about[r.worker] = true
		}
	}
	for id := range about {
		s := w.log.get(id)
		for _, i := range s.events {
			if a, ok := w.log.events[i].says.(job.Assigned); ok {
				about[a.WorkerID] = true
			}
		}
		if s.worker.JobID != "" {
			about[s.worker.JobID] = true
		}
	}
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	for _, f := range w.log.events {
		if about[f.Stream.ID] {
			lines = append(lines, line{f.Time, fmt.Sprintf("%-6s %s v%d %s %s (%s)", f.Stream.Type, short(f.Stream.ID), f.StreamVersion, f.Type, words(f.says), f.Source)})
		}
	}
	for _, n := range w.notes {
		if n.about == "" || about[n.about] {
			who := "FAULT"
			if n.about != "" {
				who = "       " + short(n.about)
			}
			lines = append(lines, line{n.at, who + " " + n.text})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintf(&b, "%s  %s\n", w.clockOf(l.at), l.text)
	}
	return b.String()
}

// words are the parts of a fact that a story needs.
func words(says any) string {
	switch e := says.(type) {
	case job.Assigned:
		return fmt.Sprintf("attempt %d to %s", e.Attempt, short(e.WorkerID))
	case job.StatusChanged:
		return fmt.Sprintf("%s -> %s: %s", e.From, e.To, e.Reason)
	case job.Requeued:
		return fmt.Sprintf("%s -> PENDING: %s", e.From, e.Reason)
	case job.Scheduled:
		return "for " + short(e.WorkerID)
	case worker.StatusChanged:
		return fmt.Sprintf("%s -> %s: %s", e.From, e.To, e.Reason)
	case worker.Terminated:
		return fmt.Sprintf("%s -> TERMINATED: %s", e.From, e.Reason)
	case worker.Reconnected:
		return fmt.Sprintf("epoch %d", e.Epoch)
	}
	return ""
}

// Shrink drops faults from a failing plan, one by one, while it still fails.
func Shrink(o Outcome) Outcome { return shrink(o, breakage{}) }

func shrink(o Outcome, broken breakage) Outcome {
	for i := 0; i < len(o.Plan); {
		less := slices.Delete(slices.Clone(o.Plan), i, i+1)
		if next := play(o.Seed, less, broken); len(next.Wrong) > 0 {
			o = next
			continue
		}
		i++
	}
	return o
}

// String is the report of a run that failed.
func (o Outcome) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: run it again with\n\n    go test hodei.dev/test/sim -run TestSim -seed=%d\n\n", o.Seed, o.Seed)
	for _, v := range o.Wrong[:min(len(o.Wrong), 8)] {
		fmt.Fprintf(&b, "wrong: %s\n", v)
	}
	b.WriteString("\nthe faults that it takes:\n")
	for _, f := range o.Plan {
		fmt.Fprintf(&b, "%8.3fs  %s\n", f.At.Seconds(), f)
	}
	fmt.Fprintf(&b, "\nwhat happened:\n%s", o.Story)
	return b.String()
}
