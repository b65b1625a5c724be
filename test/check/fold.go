package check

import (
	"fmt"
	"slices"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
)

// fold is the log, folded from zero, with what was wrong on the way.
type fold struct {
	r        *Report
	ids      map[string]bool
	versions map[string]int
	// projected are the versions of what projections have: without what was discarded.
	projected map[string]int
	settled   map[string]settlement
	jobs      map[string]job.Job
	workers   map[string]worker.Worker
	circuits  map[string]circuit.Circuit
	terminals map[string]int
}

func newFold(r *Report) *fold {
	return &fold{
		r: r, ids: map[string]bool{}, versions: map[string]int{}, projected: map[string]int{}, settled: map[string]settlement{},
		jobs: map[string]job.Job{}, workers: map[string]worker.Worker{}, circuits: map[string]circuit.Circuit{}, terminals: map[string]int{},
	}
}

// position checks that the log has no gap and no stream has one.
func (f *fold) position(i int, e event.Event) {
	if e.Position != int64(i+1) {
		f.r.add("log: position %d where %d was expected", e.Position, i+1)
	}
	if f.ids[e.ID] {
		f.r.add("log: event id %s stands twice (position %d)", e.ID, e.Position)
	}
	f.ids[e.ID] = true
	if want := f.versions[e.Stream.ID] + 1; e.StreamVersion != want {
		f.r.add("log: %s has version %d at position %d where %d was expected", e.Stream, e.StreamVersion, e.Position, want)
	}
	f.versions[e.Stream.ID] = e.StreamVersion
}

// envelope checks that an event says who, why and what (R3.4), and that its
// producer is one that the catalogue knows.
func (f *fold) envelope(e event.Event) {
	at := fmt.Sprintf("log: %s at position %d", e.Type, e.Position)
	if e.CorrelationID == "" {
		f.r.add("%s has no correlation id", at)
	}
	if e.Actor == "" || e.Source == "" || e.Namespace == "" || e.Time.IsZero() {
		f.r.add("%s has no actor, source, namespace or time", at)
	}
	entry, ok := catalogue.Lookup(e.Type)
	if !ok {
		f.r.add("%s is not in the catalogue", at)
		return
	}
	if !slices.Contains(entry.Producers, e.Source) {
		f.r.add("%s was appended by %s, not by %v", at, e.Source, entry.Producers)
	}
	if !slices.Contains(entry.Aggregates, e.Stream.Type) {
		f.r.add("%s is in the stream of a %s", at, e.Stream.Type)
	}
	if entry.Role == catalogue.Telemetry {
		f.r.add("%s is telemetry and stands in the log", at)
	}
}

// apply folds one event and checks the step that it makes.
func (f *fold) apply(e event.Event) {
	fact, err := catalogue.Decode(e.Type, e.Version, e.Data)
	if s, ok := f.settled[e.ID]; err != nil && ok {
		if s.discarded {
			return
		}
		fact, err = catalogue.Decode(e.Type, e.Version, s.edited)
	}
	if err != nil {
		f.r.add("log: position %d: %v", e.Position, err)
		return
	}
	f.projected[e.Stream.ID] = e.StreamVersion
	switch own := fact.(type) {
	case job.Event:
		before := f.jobs[e.Stream.ID]
		before.ID = e.Stream.ID
		after := before.Evolve(own, job.At{Version: e.StreamVersion, Time: e.Time})
		step(f.r, job.Transitions, e, before.State, after.State)
		f.claims(e, fact, string(before.State))
		if before.State != after.State && after.State.Terminal() {
			if f.terminals[e.Stream.ID]++; f.terminals[e.Stream.ID] > 1 {
				f.r.Doubled = append(f.r.Doubled, e.Stream.ID)
				f.r.add("%s is terminal for the second time at position %d", e.Stream, e.Position)
			}
		}
		if a, ok := fact.(job.Assigned); ok && a.Attempt != before.Attempt+1 {
			f.r.add("%s: attempt %d follows %d at position %d", e.Stream, a.Attempt, before.Attempt, e.Position)
		}
		f.jobs[e.Stream.ID] = after
	case worker.Event:
		before := f.workers[e.Stream.ID]
		before.ID = e.Stream.ID
		after := before.Evolve(own, worker.At{Version: e.StreamVersion, Time: e.Time})
		step(f.r, worker.Transitions, e, before.State, after.State)
		f.claims(e, fact, string(before.State))
		if after.State == worker.StateReady && after.JobID != "" {
			f.r.add("%s is READY and holds job %s at position %d", e.Stream, after.JobID, e.Position)
		}
		f.workers[e.Stream.ID] = after
	case circuit.Event:
		before := f.circuits[e.Stream.ID]
		after := before.Evolve(own, circuit.At{Version: e.StreamVersion, Time: e.Time})
		step(f.r, circuit.Transitions, e, before.State, after.State)
		f.circuits[e.Stream.ID] = after
	}
}

// claims checks that the state that an event says it leaves is the one that was.
func (f *fold) claims(e event.Event, fact any, before string) {
	from := ""
	switch fact := fact.(type) {
	case job.StatusChanged:
		from = string(fact.From)
	case job.Requeued:
		from = string(fact.From)
	case job.Assigned:
		from = string(fact.From)
	case worker.StatusChanged:
		from = string(fact.From)
	case worker.Terminated:
		from = string(fact.From)
	default:
		return
	}
	if from != before {
		f.r.add("%s: %s at position %d leaves %s, but it was %s", e.Stream, e.Type, e.Position, from, before)
	}
}

// step checks that a change of state is in the table and is carried by its own event.
func step[S ~string](r *Report, table transition.Table[S], e event.Event, from, to S) {
	entry, _ := catalogue.Lookup(e.Type)
	if from == to {
		if entry.Role == catalogue.Transition {
			r.add("%s: %s at position %d changes nothing: it was %s already", e.Stream, e.Type, e.Position, from)
		}
		return
	}
	carrier, ok := table.Event(from, to)
	if !ok {
		r.add("%s: %s -> %s at position %d is not in the table", e.Stream, from, to, e.Position)
	} else if carrier != e.Type {
		r.add("%s: %s -> %s at position %d by %s, not %s", e.Stream, from, to, e.Position, e.Type, carrier)
	}
}

// pairs checks that a job and its worker change in one append: the worker's step
// to BUSY stands right behind the assignment.
func (f *fold) pairs(log []event.Event) {
	for i, e := range log {
		if e.Type != "JobAssigned" {
			continue
		}
		fact, err := catalogue.Decode(e.Type, e.Version, e.Data)
		a, ok := fact.(job.Assigned)
		if err != nil || !ok {
			continue
		}
		if i+1 >= len(log) || log[i+1].Stream.ID != a.WorkerID || log[i+1].Type != "WorkerStatusChanged" {
			f.r.add("%s: its assignment at position %d is not followed by its worker's step to BUSY", e.Stream, e.Position)
		}
	}
}

// ends checks what the log ends in: a worker is BUSY exactly when a live job
// points at it; at rest every job is terminal and nothing is left.
func (f *fold) ends(atRest bool) {
	f.r.Jobs, f.r.Workers = len(f.jobs), len(f.workers)
	pointed := map[string]string{}
	for id, j := range f.jobs {
		f.r.JobStates[j.State]++
		if atRest && !j.State.Terminal() {
			f.r.Lost = append(f.r.Lost, id)
			f.r.add("job/%s is %s and not terminal: %s", id, j.State, j.Reason)
		}
		if !liveJob(j) {
			continue
		}
		if other, taken := pointed[j.WorkerID]; taken {
			f.r.add("jobs %s and %s both point at worker %s", id, other, j.WorkerID)
		}
		pointed[j.WorkerID] = id
		w := f.workers[j.WorkerID]
		if w.JobID != id || w.Attempt != j.Attempt || !holds(w.State) && atRest {
			f.r.add("job/%s is %s on worker %s, which is %s and holds %q", id, j.State, j.WorkerID, w.State, w.JobID)
		}
	}
	for id, w := range f.workers {
		f.r.WorkerStates[id] = w.State
		if w.State == worker.StateBusy && pointed[id] != w.JobID {
			f.r.add("worker/%s is BUSY with job %s, which does not point at it", id, w.JobID)
		}
		if atRest && w.State != worker.StateTerminated && w.State != worker.StateReady {
			f.r.Leaked = append(f.r.Leaked, id)
			f.r.add("worker/%s is left %s: %s", id, w.State, w.Reason)
		}
	}
}
