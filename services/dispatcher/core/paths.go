package core

import (
	"maps"
	"slices"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/worker"
)

// path is the way to the workers whose sessions one registry process holds.
type path struct {
	breaker
	// workers are those that the log says are connected through it.
	workers map[string]*workerEntry
	// asked is the worker that was the last probe.
	asked string
}

// path returns the way through a replica, made where it is new.
func (s *State) path(replica string) *path {
	p, ok := s.paths[replica]
	if !ok {
		g := circuit.Guarded{Kind: circuit.Path, Subject: replica, Name: replica}
		if replica == "" {
			g.Name = "unnamed"
		}
		p = &path{breaker: *newBreaker(g, s.policies.Of(circuit.Path)), workers: map[string]*workerEntry{}}
		s.paths[replica] = p
	}
	return p
}

// tidyPath forgets a path that nobody is on and that nothing is to be remembered of.
func (s *State) tidyPath(replica string) {
	if p, ok := s.paths[replica]; ok && len(p.workers) == 0 && p.closed() && !p.busy {
		delete(s.paths, replica)
	}
}

func (s *State) pathNames() []string { return slices.Sorted(maps.Keys(s.paths)) }

// follow puts the worker on the path that its session is on, or takes it off.
func (s *State) follow(e *workerEntry) {
	var now *path
	if e.Connected && e.State.Connected() {
		now = s.path(e.Replica)
	}
	if e.path == now {
		return
	}
	if was := e.path; was != nil {
		delete(was.workers, e.ID)
		s.tidyPath(was.Subject)
		s.pathsChanged()
	}
	if e.path = now; now != nil {
		now.workers[e.ID] = e
		s.pathsChanged()
	}
}

// pathsChanged: whether anybody can be reached may be another matter now.
func (s *State) pathsChanged() {
	if s.cut != s.cutOff() {
		s.cut = !s.cut
		s.generation++
		s.roomier = true
	}
}

// met notes that a worker has just connected: its session is certainly there.
func (s *State) met(e *workerEntry) {
	if e.path != nil && e.path.State == circuit.StateOpen {
		e.path.hint = e.ID
	}
}

// probe chooses the worker that is asked next: the one that has just connected, else
// another than the last.
func (p *path) probe(to circuit.State) string {
	if to != circuit.StateHalfOpen {
		return ""
	}
	if _, ok := p.workers[p.hint]; !ok {
		ids := slices.Sorted(maps.Keys(p.workers))
		if len(ids) == 0 {
			return ""
		}
		i, found := slices.BinarySearch(ids, p.asked)
		if found {
			i++
		}
		p.hint = ids[i%len(ids)]
	}
	p.asked = p.hint
	return p.asked
}

// reachable tells whether commands may be sent to the worker.
func (e *workerEntry) reachable() bool { return e.path == nil || e.path.closed() }

// cutOff tells whether there are workers and none of them can be reached: the registry
// is away, and a new worker could not be reached either.
func (s *State) cutOff() bool {
	some := false
	for _, p := range s.paths {
		if len(p.workers) > 0 {
			if p.closed() {
				return false
			}
			some = true
		}
	}
	return some
}

// stranded tells whether all of a provider's idle workers are out of reach, and some are.
func (s *State) stranded(p *providerEntry) bool {
	some := false
	for _, w := range s.workers {
		if w.provider == p && w.State == worker.StateReady {
			if w.reachable() {
				return false
			}
			some = true
		}
	}
	return some
}
