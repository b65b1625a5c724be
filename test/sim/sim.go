package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
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
