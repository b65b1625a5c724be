package core

import (
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// State is what the dispatcher knows: a cache of the log's live jobs, workers and
// providers, with the indexes that decisions need. Use [New]. It is not safe for
// concurrent use.
type State struct {
	jobs       map[string]*jobEntry
	workers    map[string]*workerEntry
	providers  map[string]*providerEntry
	byName     []*providerEntry // those that are known, by name
	namespaces map[string]*namespace
	shapes     map[shapeKey]*shape
	// open and blocked are the classes that have jobs.
	open, blocked []*class
	// roomier: something was freed since the last look at the blocked ones.
	roomier bool
	// generation grows with every change of what could run at all.
	generation uint64
	// timers are the jobs that are held back, soonest first.
	timers heap[*jobEntry]
	// What follows is examined when it is its turn: entries may be out of date.
	owners    []*jobEntry // SCHEDULED jobs whose own worker is READY
	orphans   []*jobEntry // SCHEDULED jobs whose worker is gone
	deferrals []*jobEntry // PENDING jobs of shapes that nothing can run
	sequence  uint64
	// paths are the ways to workers, by registry replica; cut: none of them works.
	paths    map[string]*path
	cut      bool
	policies Policies
	waiting  int // PENDING and SCHEDULED
	idle     int
	ended    ends
}

type jobEntry struct {
	job.Job
	seq uint64
	// lane is where it waits, place its index there; nil outside.
	lane  *lane
	place int
	// due is when the job may go into its lane; timer its index among the timers, -1 outside.
	due   time.Time
	timer int
	// retry holds it back beyond what the log says.
	retry time.Time
	// waits is the worker that it is SCHEDULED for; nil where that is unknown. A job
	// that was taken in whole, with all workers, and has none, waits in vain.
	waits *workerEntry
	whole bool
	// reserved is the provider that its resources are booked at, next the one that a
	// decision on its way would take it to; live and counted: it counts as live, as waiting.
	reserved, next *providerEntry
	live, counted  bool
	// held: a decision about it is on its way, with a worker, or with room for one more.
	held       bool
	heldAt     *providerEntry
	heldWorker *workerEntry
	heldSlot   bool
}

type workerEntry struct {
	worker.Worker
	provider *providerEntry
	// announced: the whole append that made it READY has been seen.
	announced bool
	// failure is what WorkerProvisioningFailed said.
	failure string
	held    bool
	// pool is where it is idle, place its index there; nil outside.
	pool      *pool
	place     int
	idleSince uint64
	// path is the way to it; nil while it is not connected.
	path *path
	// judged: it has said whether its provider can make workers.
	judged bool
	// exists and usable: it counts as such at its provider.
	exists, usable bool
}

type providerEntry struct {
	provider.Provider
	known bool
	// breaker guards the making of workers.
	breaker *breaker
	// reserved by live jobs, and by decisions on their way.
	reserved job.Resources
	// workers are not TERMINATED, usable ones not going either; slots are workers
	// whose making is decided but not yet in the log.
	workers, usable, slots int
	pools                  []*pool
}

// pool is the idle workers of one provider and size, the longest idle first.
type pool struct {
	size job.Resources
	idle heap[*workerEntry]
}

// New returns an empty state with the default policies.
func New() *State { return NewWith(DefaultPolicies()) }

// NewWith returns an empty state.
func NewWith(p Policies) *State {
	return &State{
		policies: p, paths: map[string]*path{},
		jobs: map[string]*jobEntry{}, workers: map[string]*workerEntry{}, providers: map[string]*providerEntry{},
		namespaces: map[string]*namespace{}, shapes: map[shapeKey]*shape{},
		timers: heap[*jobEntry]{less: sooner, place: timerPlace}, generation: 1,
	}
}

// Job returns what is known of a live job.
func (s *State) Job(id string) (job.Job, bool) {
	if j, ok := s.jobs[id]; ok {
		return j.Job, true
	}
	return job.Job{}, false
}

// Worker returns what is known of a live worker.
func (s *State) Worker(id string) (worker.Worker, bool) {
	if w, ok := s.workers[id]; ok {
		return w.Worker, true
	}
	return worker.Worker{}, false
}

// Provider returns what is known of a provider.
func (s *State) Provider(id string) (provider.Provider, bool) {
	if p, ok := s.providers[id]; ok && p.known {
		return p.Provider, true
	}
	return provider.Provider{}, false
}

// JobVersion is the version of a job that the state has; 0 where it has none.
func (s *State) JobVersion(id string) int {
	if j, ok := s.jobs[id]; ok {
		return j.Version
	}
	return 0
}

// Assigned returns the jobs that are ASSIGNED: each still has to be handed over.
func (s *State) Assigned() []job.Job {
	var out []job.Job
	for _, j := range s.jobs {
		if j.State == job.StateAssigned {
			out = append(out, j.Job)
		}
	}
	return out
}

// Figures are counts for people.
type Figures struct {
	// Queued are PENDING and SCHEDULED jobs; Idle are READY workers without a
	// decision about them; Providers are those that are not removed.
	Queued, Idle, Providers int
}

// Figures counts.
func (s *State) Figures() Figures {
	f := Figures{Queued: s.waiting, Idle: s.idle}
	for _, p := range s.byName {
		if p.State == provider.StateEnabled {
			f.Providers++
		}
	}
	return f
}

// ObserveJob takes in a whole fold. What the state has already is ignored, and so is
// what was read of a job before its end.
func (s *State) ObserveJob(j job.Job) {
	e, ok := s.jobs[j.ID]
	if !ok {
		if s.ended.has(j.ID) {
			return
		}
		e = s.addJob(j.ID)
	} else if j.Version <= e.Version {
		return
	}
	e.Job, e.whole = j, true
	s.jobChanged(e)
}

// ApplyJob folds one event. What the state has already is ignored, and so is a job
// that it does not know, unless the event is the one that queues it.
func (s *State) ApplyJob(id string, fact job.Event, at job.At) {
	e, ok := s.jobs[id]
	if !ok {
		switch fact.(type) {
		case job.Created, job.Queued:
			if s.ended.has(id) {
				return
			}
			e = s.addJob(id)
		default:
			return
		}
	} else if at.Version <= e.Version {
		return
	}
	e.Job, e.whole = e.Evolve(fact, at), false
	e.ID = id
	s.jobChanged(e)
}

func (s *State) addJob(id string) *jobEntry {
	s.sequence++
	e := &jobEntry{seq: s.sequence, place: -1, timer: -1}
	s.jobs[id] = e
	return e
}

// jobChanged brings the indexes up to date.
func (s *State) jobChanged(e *jobEntry) {
	s.setAside(e)
	s.await(e)
	s.book(e)
	switch {
	case e.held:
	case e.State.Terminal():
		delete(s.jobs, e.ID)
		s.ended.add(e.ID)
	case e.Cancel != nil:
		// Its end is on its way.
	case e.State == job.StatePending:
		e.due = e.NotBefore
		if e.retry.After(e.due) {
			e.due = e.retry
		}
		s.makeWait(e)
	case e.State == job.StateScheduled:
		e.due = e.retry
		s.makeWait(e)
	}
}

// makeWait puts a job where it waits: for its time, for a decision about its
// worker, or in its lane.
func (s *State) makeWait(e *jobEntry) {
	switch {
	case !e.due.IsZero():
		s.timers.push(e)
	case e.State == job.StateScheduled && e.orphaned():
		s.orphans = append(s.orphans, e)
	default:
		s.enqueue(e)
		if e.State == job.StateScheduled && idle(e.waits) {
			s.owners = append(s.owners, e)
		}
	}
}

func (s *State) setAside(e *jobEntry) {
	s.dequeue(e)
	if e.timer >= 0 {
		s.timers.remove(e)
	}
}

// await notes which worker the job is waiting for. The one that it no longer waits
// for is everybody's.
func (s *State) await(e *jobEntry) {
	var now *workerEntry
	was := e.waits
	if e.State == job.StateScheduled {
		if now = s.workers[e.WorkerID]; now == nil && was != nil && was.ID == e.WorkerID {
			now = was // terminated: the job has to hear of it
		}
	}
	e.waits = now
	if was != nil && was != now {
		s.place(was)
	}
}

// book counts the job and keeps its resources where it is, and also where it is
// about to be: either may come true.
func (s *State) book(e *jobEntry) {
	var at, next *providerEntry
	if e.State == job.StateScheduled || e.State.HasWorker() {
		at = s.provider(e.ProviderID)
	}
	if e.held && e.heldAt != at {
		next = e.heldAt
	}
	s.reserve(e, &e.reserved, at)
	s.reserve(e, &e.next, next)
	if live := at != nil || next != nil; live != e.live {
		e.live = live
		if live {
			s.addLive(e.Spec.Namespace, 1)
		} else {
			s.addLive(e.Spec.Namespace, -1)
		}
	}
	if waits := e.State == job.StatePending || e.State == job.StateScheduled; waits != e.counted {
		e.counted = waits
		if waits {
			s.waiting++
		} else {
			s.waiting--
		}
	}
}

// reserve moves one of the job's reservations.
func (s *State) reserve(e *jobEntry, from **providerEntry, to *providerEntry) {
	was, need := *from, e.Spec.Resources
	if was == to {
		return
	}
	if was != nil {
		was.reserved.CPUMillis -= need.CPUMillis
		was.reserved.MemoryBytes -= need.MemoryBytes
		s.roomier = true
	}
	if to != nil {
		to.reserved.CPUMillis += need.CPUMillis
		to.reserved.MemoryBytes += need.MemoryBytes
	}
	*from = to
}

// Settle ends the hold of the decision about a job, whatever came of it; what
// became true has been observed before. With a retryAt the job is held back until
// then, where nothing became true.
func (s *State) Settle(jobID string, retryAt time.Time) {
	e, ok := s.jobs[jobID]
	if !ok || !e.held {
		return
	}
	w, slot, at := e.heldWorker, e.heldSlot, e.heldAt
	e.held, e.heldWorker, e.heldSlot, e.heldAt, e.retry = false, nil, false, nil, retryAt
	if slot {
		at.slots--
		s.roomier = true
	}
	if w != nil {
		w.held = false
	}
	s.jobChanged(e)
	if w != nil {
		s.place(w)
	}
}

// hold reserves what a decision takes.
func (s *State) hold(e *jobEntry, at *providerEntry, w *workerEntry, slot bool) {
	e.held, e.heldAt, e.heldWorker, e.heldSlot = true, at, w, slot
	if slot {
		at.slots++
	}
	if w != nil {
		w.held = true
		s.place(w)
	}
	s.jobChanged(e)
}

// NextWake is when a job that is held back is due, or a circuit may be probed; false
// where neither is.
func (s *State) NextWake() (time.Time, bool) {
	next, ok := s.nextProbe()
	if s.timers.len() > 0 && (!ok || s.timers.first().due.Before(next)) {
		return s.timers.first().due, true
	}
	return next, ok
}

// wake lets the jobs whose time has come wait in their lanes.
func (s *State) wake(now time.Time) {
	for s.timers.len() > 0 && !s.timers.first().due.After(now) {
		e := s.timers.first()
		s.timers.remove(e)
		e.due, e.retry = time.Time{}, time.Time{}
		s.makeWait(e)
	}
}
