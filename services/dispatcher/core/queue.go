package core

import (
	"maps"
	"slices"
	"strconv"

	"hodei.dev/libs/domain/job"
)

// shapeKey is all of a job that decides where it fits.
type shapeKey struct {
	res                 job.Resources
	provider, preferred string
	// labels are the required ones, in a form of their own.
	labels string
}

// keyOf returns the shape of a spec.
func keyOf(spec *job.Spec) shapeKey {
	k := shapeKey{res: spec.Resources, provider: spec.Placement.Provider, preferred: spec.Placement.PreferredProvider}
	for _, name := range slices.Sorted(maps.Keys(spec.Placement.RequiredLabels)) {
		k.labels += strconv.Quote(name) + strconv.Quote(spec.Placement.RequiredLabels[name])
	}
	return k
}

// shape is the waiting jobs that fit in the same places.
type shape struct {
	key shapeKey
	// placement is what the jobs of the shape have in common.
	placement job.Placement
	// pending jobs may have a worker made, scheduled ones wait for one already; atHome
	// are those of them whose worker is being made by the provider that they prefer.
	pending, scheduled, atHome class
	// reasons why nothing can run the shape as things are; nil where something can.
	// They hold as long as checked is the state's generation of providers.
	reasons []string
	checked uint64
}

// class is the waiting jobs of a shape in one state.
type class struct {
	shape  *shape
	lanes  heap[*lane]
	byKey  map[laneKey]*lane
	listed list
	// home: its jobs take no other provider's worker, for theirs is on its way.
	home bool
}

// list is where the state keeps a class.
type list int

const (
	unlisted list = iota
	// open: some job of it may fit.
	open
	// blocked: none fits until there is room somewhere.
	blocked
)

type laneKey struct {
	priority  int
	namespace string
}

// lane is the jobs of one class, priority and namespace, oldest first. It exists
// only while it has jobs.
type lane struct {
	key   laneKey
	class *class
	ns    *namespace
	jobs  heap[*jobEntry]
	// place in the class, nsPlace among the namespace's lanes.
	place, nsPlace int
}

// namespace is what fair share compares.
type namespace struct {
	name  string
	live  int
	lanes []*lane
}

func before(a, b *lane) bool {
	if a.key.priority != b.key.priority {
		return a.key.priority > b.key.priority
	}
	if a.ns.live != b.ns.live {
		return a.ns.live < b.ns.live
	}
	return a.jobs.first().seq < b.jobs.first().seq
}

func lanePlace(l *lane) *int            { return &l.place }
func jobPlace(j *jobEntry) *int         { return &j.place }
func timerPlace(j *jobEntry) *int       { return &j.timer }
func workerPlace(w *workerEntry) *int   { return &w.place }
func older(a, b *jobEntry) bool         { return a.seq < b.seq }
func sooner(a, b *jobEntry) bool        { return a.due.Before(b.due) }
func longerIdle(a, b *workerEntry) bool { return a.idleSince < b.idleSince }

// shape returns the shape of a spec, made where it is new.
func (s *State) shape(spec *job.Spec) *shape {
	key := keyOf(spec)
	sh, ok := s.shapes[key]
	if !ok {
		sh = &shape{key: key, placement: spec.Placement}
		for _, c := range sh.classes() {
			*c = class{shape: sh, lanes: heap[*lane]{less: before, place: lanePlace}, byKey: map[laneKey]*lane{}}
		}
		sh.atHome.home = true
		s.shapes[key] = sh
	}
	return sh
}

func (sh *shape) classes() []*class { return []*class{&sh.pending, &sh.scheduled, &sh.atHome} }

// empty tells whether no job of the shape waits.
func (sh *shape) empty() bool {
	return sh.pending.lanes.len() == 0 && sh.scheduled.lanes.len() == 0 && sh.atHome.lanes.len() == 0
}

func (s *State) namespace(name string) *namespace {
	ns, ok := s.namespaces[name]
	if !ok {
		ns = &namespace{name: name}
		s.namespaces[name] = ns
	}
	return ns
}

// enqueue puts a job that waits into its lane.
func (s *State) enqueue(j *jobEntry) {
	sh := s.shape(&j.Spec)
	c := &sh.pending
	switch {
	case j.State == job.StateScheduled && s.provider(j.ProviderID).preferred(j):
		c = &sh.atHome
	case j.State == job.StateScheduled:
		c = &sh.scheduled
	}
	key := laneKey{j.Spec.Priority, j.Spec.Namespace}
	l, ok := c.byKey[key]
	if !ok {
		l = &lane{key: key, class: c, ns: s.namespace(key.namespace), jobs: heap[*jobEntry]{less: older, place: jobPlace}}
		l.nsPlace = len(l.ns.lanes)
		l.ns.lanes = append(l.ns.lanes, l)
		c.byKey[key] = l
	}
	j.lane = l
	l.jobs.push(j)
	if !ok {
		c.lanes.push(l)
	} else if l.jobs.first() == j {
		c.lanes.fix(l.place)
	}
	if c.listed == unlisted {
		c.listed = open
		s.open = append(s.open, c)
	}
	if c == &sh.pending && sh.reasons != nil && sh.checked == s.generation {
		s.deferrals = append(s.deferrals, j)
	}
}

// dequeue takes a job out of its lane.
func (s *State) dequeue(j *jobEntry) {
	l := j.lane
	if l == nil {
		return
	}
	j.lane = nil
	c, head := l.class, l.jobs.first() == j
	if l.jobs.len() > 1 {
		l.jobs.remove(j)
		if head {
			c.lanes.fix(l.place)
		}
		return
	}
	// The lane leaves the heap first: an empty one has no order.
	c.lanes.remove(l)
	l.jobs.remove(j)
	delete(c.byKey, l.key)
	last := l.ns.lanes[len(l.ns.lanes)-1]
	l.ns.lanes[l.nsPlace], last.nsPlace = last, l.nsPlace
	l.ns.lanes = l.ns.lanes[:len(l.ns.lanes)-1]
	s.tidyNamespace(l.ns)
	if sh := c.shape; sh.empty() {
		delete(s.shapes, sh.key)
	}
}

// addLive books that a namespace has one live job more, or less.
func (s *State) addLive(name string, n int) {
	ns := s.namespace(name)
	ns.live += n
	for _, l := range ns.lanes {
		l.class.lanes.fix(l.place)
	}
	s.tidyNamespace(ns)
}

func (s *State) tidyNamespace(ns *namespace) {
	if ns.live == 0 && len(ns.lanes) == 0 {
		delete(s.namespaces, ns.name)
	}
}

// best returns the open class whose head comes first; nil where none is open.
func (s *State) best() *class {
	var found *class
	kept := s.open[:0]
	for _, c := range s.open {
		if c.lanes.len() == 0 {
			c.listed = unlisted
			continue
		}
		kept = append(kept, c)
		if found == nil || before(c.lanes.first(), found.lanes.first()) {
			found = c
		}
	}
	clear(s.open[len(kept):])
	s.open = kept
	return found
}

// block sets a class aside until there is room somewhere.
func (s *State) block(c *class) {
	for i, o := range s.open {
		if o == c {
			last := len(s.open) - 1
			s.open[i], s.open[last] = s.open[last], nil
			s.open = s.open[:last]
			break
		}
	}
	c.listed = blocked
	s.blocked = append(s.blocked, c)
	if len(s.blocked) > 4*len(s.shapes)+64 {
		s.forgetEmpty()
	}
}

// forgetEmpty drops blocked classes whose jobs have gone another way.
func (s *State) forgetEmpty() {
	s.blocked = slices.DeleteFunc(s.blocked, func(c *class) bool {
		if c.lanes.len() > 0 {
			return false
		}
		c.listed = unlisted
		return true
	})
}

// unblock opens all classes again: there may be room.
func (s *State) unblock() {
	s.roomier = false
	for _, c := range s.blocked {
		if c.lanes.len() == 0 {
			c.listed = unlisted
			continue
		}
		c.listed = open
		s.open = append(s.open, c)
	}
	clear(s.blocked)
	s.blocked = s.blocked[:0]
}
