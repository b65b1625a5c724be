package core

import (
	"slices"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
)

// Decide returns what to do now, at most limit decisions (0 = all there are). The
// jobs, workers and room that they take are held until each is settled. Fewer than
// limit means that nothing is left to do until something is observed or settled,
// or [State.NextWake] comes.
func (s *State) Decide(now time.Time, limit int) []Decision {
	s.wake(now)
	if s.roomier {
		s.unblock()
	}
	d := decider{State: s, limit: limit}
	d.give()
	d.abandon()
	d.placeAll()
	d.deferAll()
	return d.out
}

type decider struct {
	*State
	limit int
	out   []Decision
}

func (d *decider) full() bool { return d.limit > 0 && len(d.out) >= d.limit }

// give hands SCHEDULED jobs the workers that were made for them.
func (d *decider) give() {
	d.owners = d.drain(d.owners, func(j *jobEntry) {
		if j.lane == nil || j.State != job.StateScheduled || !idle(j.waits) {
			return
		}
		w := j.waits
		d.out = append(d.out, Assign{Job: j.ID, Worker: w.ID, Reason: "its own worker is ready"})
		d.hold(j, w.provider, w, false)
	})
}

// abandon ends the wait for workers that are gone.
func (d *decider) abandon() {
	d.orphans = d.drain(d.orphans, func(j *jobEntry) {
		if d.jobs[j.ID] != j || j.held || j.State != job.StateScheduled || j.Cancel != nil || j.timer >= 0 || !j.orphaned() {
			return
		}
		d.out = append(d.out, Abandon{Job: j.ID, Worker: j.WorkerID, Reason: farewell(j)})
		d.hold(j, nil, nil, false)
	})
}

// deferAll notes what nothing can run.
func (d *decider) deferAll() {
	d.deferrals = d.drain(d.deferrals, func(j *jobEntry) {
		if j.lane == nil || j.State != job.StatePending {
			return
		}
		sh := j.lane.class.shape
		if sh.reasons == nil || sh.checked != d.generation || slices.Equal(j.Deferred, sh.reasons) {
			return
		}
		d.out = append(d.out, Defer{Job: j.ID, Reasons: sh.reasons})
		d.hold(j, nil, nil, false)
	})
}

// drain handles a list until it is empty or there are decisions enough.
func (d *decider) drain(jobs []*jobEntry, handle func(*jobEntry)) []*jobEntry {
	done := 0
	for done < len(jobs) && !d.full() {
		handle(jobs[done])
		done++
	}
	return slices.Delete(jobs, 0, done)
}

// placeAll places the queue's jobs in their order until no shape that is left fits.
func (d *decider) placeAll() {
	for !d.full() {
		c := d.best()
		if c == nil {
			return
		}
		j := c.lanes.first().jobs.first()
		if !d.placeOne(j) {
			if j.State == job.StatePending {
				d.examine(c.shape)
			}
			d.block(c)
		}
	}
}

// placeOne finds the job a worker, or a provider that makes one.
// The one that it prefers comes first, with a worker or with room for one.
func (d *decider) placeOne(j *jobEntry) bool {
	if preferred := j.Spec.Placement.PreferredProvider; preferred != "" {
		if d.placeAt(j, preferred) {
			return true
		}
		if j.lane.class.home {
			return false
		}
	}
	return d.placeAt(j, "")
}

// placeAt is placeOne among the providers of an id or name; "" = all.
func (d *decider) placeAt(j *jobEntry, among string) bool {
	if w := d.idleFor(j, among); w != nil {
		reason := "an idle worker of provider " + w.provider.Spec.Name + " fits" + d.instead(j, w.provider)
		d.out = append(d.out, Assign{Job: j.ID, Worker: w.ID, Reason: reason})
		d.hold(j, w.provider, w, false)
		return true
	}
	if j.State != job.StatePending {
		return false
	}
	if d.cut {
		return false // a new worker could not be reached either
	}
	p := d.roomiest(j, among)
	if p == nil {
		d.want(j, among)
		return false
	}
	candidates, reason := d.candidates(j, p)
	d.out = append(d.out, Schedule{Job: j.ID, Provider: p.ID, Candidates: candidates, Reason: reason})
	d.hold(j, p, nil, true)
	return true
}

// idleFor returns the longest idle worker that fits among the providers of an id or
// name ("" = all); nil where none does.
func (s *State) idleFor(j *jobEntry, among string) *workerEntry {
	var found *workerEntry
	for _, p := range s.byName {
		if len(p.pools) == 0 || p.State != provider.StateEnabled || !p.named(among) || !p.allowed(j.Spec.Placement) || !p.affords(j) {
			continue
		}
		for _, q := range p.pools {
			if w := q.idle.first(); fits(j.Spec.Resources, q.size) && (found == nil || w.idleSince < found.idleSince) {
				found = w
			}
		}
	}
	return found
}

// fits tells whether a reservation is within limits; 0 is no limit.
func fits(need, limit job.Resources) bool {
	return (limit.CPUMillis == 0 || need.CPUMillis <= limit.CPUMillis) && (limit.MemoryBytes == 0 || need.MemoryBytes <= limit.MemoryBytes)
}

// capacity is what jobs can reserve from in all; 0 is no limit.
func (p *providerEntry) capacity() job.Resources {
	return job.Resources{CPUMillis: p.Spec.CPUMillis, MemoryBytes: p.Spec.MemoryBytes}
}

// affords tells whether the job's reservation fits beside the others; its own, made
// when it was SCHEDULED there, is not another. Who reserves nothing always fits.
func (p *providerEntry) affords(j *jobEntry) bool {
	if j.reserved == p {
		return true
	}
	need := j.Spec.Resources
	if need.CPUMillis > 0 {
		need.CPUMillis += p.reserved.CPUMillis
	}
	if need.MemoryBytes > 0 {
		need.MemoryBytes += p.reserved.MemoryBytes
	}
	return fits(need, p.capacity())
}

func (p *providerEntry) named(idOrName string) bool {
	return idOrName == "" || idOrName == p.Spec.Name || idOrName == p.ID
}

// allowed tells whether a job may run there at all.
func (p *providerEntry) allowed(by job.Placement) bool {
	return p.named(by.Provider) && p.labelled(by.RequiredLabels)
}

// preferred tells whether the job prefers the provider.
func (p *providerEntry) preferred(j *jobEntry) bool {
	want := j.Spec.Placement.PreferredProvider
	return want != "" && p.named(want)
}

// labelled tells whether the provider has all labels that a job requires.
func (p *providerEntry) labelled(required map[string]string) bool {
	for k, want := range required {
		if has, ok := p.Spec.Labels[k]; !ok || has != want {
			return false
		}
	}
	return true
}

// verdict is what a look at a provider found.
type verdict int

const (
	hasRoom verdict = iota
	// Busy ones may have room later ...
	workersFull
	resourcesFull
	operatorBusy
	// ... the others can run nothing of this shape as they are.
	removed
	unlabelled
	tooSmall
	unhealthy
	circuitOpen
	strandedAll
	operatorAway
)

func (v verdict) hopeless() bool { return v >= removed }

// look says whether the provider can make a worker for the job.
func (p *providerEntry) look(j *jobEntry) verdict {
	switch {
	case p.State != provider.StateEnabled:
		return removed
	case !p.labelled(j.Spec.Placement.RequiredLabels):
		return unlabelled
	case !fits(j.Spec.Resources, p.capacity()):
		return tooSmall
	case p.Health == provider.Unhealthy:
		return unhealthy
	case p.Spec.Kind == provider.External && p.usable == 0:
		return operatorAway
	case p.Spec.Kind == provider.External:
		return operatorBusy
	case !p.breaker.closed():
		return circuitOpen
	case p.room() <= 0:
		return workersFull
	case !p.affords(j):
		return resourcesFull
	}
	return hasRoom
}

// room is how many more workers the provider may have.
func (p *providerEntry) room() int { return p.Spec.MaxWorkers - p.workers - p.slots }

// roomiest returns the provider with the most room for workers of those that fit
// among the ones of an id or name ("" = all); nil where none does.
func (s *State) roomiest(j *jobEntry, among string) *providerEntry {
	var found *providerEntry
	for _, p := range s.byName {
		if p.named(among) && p.named(j.Spec.Placement.Provider) && p.look(j) == hasRoom && (found == nil || p.room() > found.room()) {
			found = p
		}
	}
	return found
}

// want notes, for the providers that are kept from making the job a worker by their
// circuits alone, that there is a job for a probe to help.
func (s *State) want(j *jobEntry, among string) {
	for _, p := range s.byName {
		if p.named(among) && p.named(j.Spec.Placement.Provider) && p.look(j) == circuitOpen && p.affords(j) {
			p.breaker.wanted = true
		}
	}
}

// examine finds out whether anything could ever run the shape as things are, and
// has its jobs told where nothing can. It is asked once a generation.
func (s *State) examine(sh *shape) {
	if sh.checked == s.generation {
		return
	}
	sh.checked = s.generation
	sh.reasons = s.impossible(sh)
	if sh.reasons == nil {
		return
	}
	for _, l := range sh.pending.byKey {
		s.deferrals = append(s.deferrals, l.jobs.items...)
	}
}
