package core

import (
	"cmp"
	"slices"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// ObserveWorker takes in a whole fold. What the state has already is ignored, and so
// is what was read of a worker before its end.
func (s *State) ObserveWorker(w worker.Worker) {
	e, ok := s.workers[w.ID]
	if !ok {
		if s.ended.has(w.ID) {
			return
		}
		e = s.addWorker(w.ID)
	} else if w.Version <= e.Version {
		return
	}
	e.Worker, e.announced = w, true
	s.workerChanged(e)
	s.judge(e, false)
}

// ApplyWorker folds one event. What the state has already is ignored, and so is a
// worker that it does not know, unless the event is its first.
func (s *State) ApplyWorker(id string, fact worker.Event, at worker.At) {
	e, ok := s.workers[id]
	if !ok {
		if _, first := fact.(worker.ProvisioningRequested); !first || s.ended.has(id) {
			return
		}
		e = s.addWorker(id)
	} else if at.Version <= e.Version {
		return
	}
	switch fact := fact.(type) {
	case worker.StatusChanged:
		e.announced = false
	case worker.ReadyForJob:
		e.announced = true
	case worker.ProvisioningFailed:
		e.failure = fact.Reason
	}
	e.Worker = e.Evolve(fact, at)
	e.ID = id
	s.workerChanged(e)
	s.judge(e, true)
	switch fact.(type) {
	case worker.Ready, worker.Reconnected:
		s.met(e)
	}
}

func (s *State) addWorker(id string) *workerEntry {
	e := &workerEntry{place: -1}
	s.workers[id] = e
	return e
}

func (s *State) workerChanged(e *workerEntry) {
	if e.provider == nil {
		e.provider = s.provider(e.ProviderID)
	}
	if e.State.Terminal() {
		delete(s.workers, e.ID)
		s.ended.add(e.ID)
	}
	s.count(e)
	s.follow(e)
	s.place(e)
	if j := s.waiter(e); j != nil {
		j.waits = e
		if !j.held {
			s.jobChanged(j)
		}
	}
}

// waiter is the job that is SCHEDULED for the worker.
func (s *State) waiter(e *workerEntry) *jobEntry {
	j, ok := s.jobs[e.WaitingJobID]
	if !ok || j.State != job.StateScheduled || j.WorkerID != e.ID {
		return nil
	}
	return j
}

// count books the worker at its provider.
func (s *State) count(e *workerEntry) {
	p := e.provider
	exists := !e.State.Terminal()
	usable := exists && e.State != worker.StateTerminating && e.State != worker.StateDraining
	if exists != e.exists {
		e.exists = exists
		if exists {
			p.workers++
		} else {
			p.workers--
			s.roomier = true
		}
	}
	if usable != e.usable {
		e.usable = usable
		before := p.usable
		if usable {
			p.usable++
		} else {
			p.usable--
		}
		// An external provider without workers can run nothing.
		if p.Spec.Kind == provider.External && (before == 0 || p.usable == 0) {
			s.generation++
			s.roomier = true
		}
	}
}

// idle tells whether the worker may be given a job now.
func idle(e *workerEntry) bool {
	return e != nil && e.State == worker.StateReady && e.announced && e.Connected && !e.held && e.reachable()
}

// orphaned tells whether the worker that the job waits for will not come.
func (e *jobEntry) orphaned() bool {
	if e.waits == nil {
		return e.whole
	}
	return e.waits.gone()
}

func (e *workerEntry) gone() bool {
	if e.failure != "" && (e.State == worker.StateCreating || e.State == worker.StateConnecting) {
		return true
	}
	return e.State == worker.StateDraining || e.State == worker.StateTerminating || e.State == worker.StateTerminated
}

// place puts the worker among the idle ones, or takes it out. One that a SCHEDULED
// job waits for is that job's alone.
func (s *State) place(e *workerEntry) {
	want := idle(e) && s.waiter(e) == nil
	switch {
	case want && e.pool == nil:
		s.sequence++
		e.idleSince, e.pool = s.sequence, e.provider.pool(job.Resources{CPUMillis: e.CPUMillis, MemoryBytes: e.MemoryBytes})
		e.pool.idle.push(e)
		s.idle++
		s.roomier = true
	case !want && e.pool != nil:
		e.pool.idle.remove(e)
		if e.pool.idle.len() == 0 {
			e.provider.pools = slices.DeleteFunc(e.provider.pools, func(p *pool) bool { return p == e.pool })
		}
		e.pool = nil
		s.idle--
	}
}

// pool returns the pool of a size, made where it is new.
func (p *providerEntry) pool(size job.Resources) *pool {
	for _, q := range p.pools {
		if q.size == size {
			return q
		}
	}
	q := &pool{size: size, idle: heap[*workerEntry]{less: longerIdle, place: workerPlace}}
	p.pools = append(p.pools, q)
	return q
}

// ObserveProvider takes in a whole fold. What the state has already is ignored.
func (s *State) ObserveProvider(p provider.Provider) {
	e := s.provider(p.ID)
	if e.known && p.Version <= e.Version {
		return
	}
	e.Provider = p
	s.providerChanged(e)
}

// ApplyProvider folds one event. What the state has already is ignored.
func (s *State) ApplyProvider(id string, fact provider.Event, at provider.At) {
	e := s.provider(id)
	if at.Version <= e.Version {
		return
	}
	e.Provider = e.Evolve(fact, at)
	e.ID = id
	s.providerChanged(e)
}

func (s *State) providerChanged(e *providerEntry) {
	e.breaker.Name = e.Spec.Name
	if !e.known {
		e.known = true
		s.byName = append(s.byName, e)
	}
	slices.SortFunc(s.byName, func(a, b *providerEntry) int { return cmp.Compare(a.Spec.Name, b.Spec.Name) })
	s.generation++
	s.roomier = true
}

// provider returns the entry of an id; what is booked at one that is not yet known
// is kept for it.
func (s *State) provider(id string) *providerEntry {
	e, ok := s.providers[id]
	if !ok {
		e = &providerEntry{}
		e.breaker = newBreaker(circuit.Guarded{Kind: circuit.Provider, Subject: id, Name: id}, s.policies.Of(circuit.Provider))
		s.providers[id] = e
	}
	return e
}
