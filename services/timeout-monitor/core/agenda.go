package core

import (
	"container/heap"
	"slices"
	"time"
)

// Entry is one armed deadline on the agenda.
type Entry struct {
	Type Type
	// ID is the aggregate's, Version its version when the deadline was armed.
	ID      string
	Version int
	Due     time.Time
	// Tries counts the times that its recovery could not be appended.
	Tries int

	place int // in the heap
}

// Agenda is the near future: the deadlines up to its horizon, the earliest first.
// What lies beyond the horizon is elsewhere (in the database) and comes with the
// next [Agenda.Extend]. Not safe for concurrent use.
type Agenda struct {
	limit   int
	horizon time.Time
	heap    entries
	byID    map[string]*Entry
}

// NewAgenda returns an empty agenda that holds about limit deadlines, at most
// twice as many.
func NewAgenda(limit int) *Agenda {
	return &Agenda{limit: max(limit, 1), byID: map[string]*Entry{}}
}

// Len is how many deadlines it holds.
func (a *Agenda) Len() int { return len(a.heap) }

// Horizon is up to when it is complete.
func (a *Agenda) Horizon() time.Time { return a.horizon }

// Extend moves the horizon: the caller has put, or puts next, every deadline up to it.
func (a *Agenda) Extend(horizon time.Time) { a.horizon = horizon }

// Put arms a deadline, in place of the aggregate's earlier one. What is older than
// what it knows is ignored; what is due after the horizon is left to a later Extend.
func (a *Agenda) Put(e Entry) {
	old := a.byID[e.ID]
	if old != nil && old.Version > e.Version {
		return
	}
	if e.Due.After(a.horizon) {
		a.remove(old)
		return
	}
	if old != nil {
		e.place = old.place
		*old = e
		heap.Fix(&a.heap, e.place)
		return
	}
	n := &e
	a.byID[e.ID] = n
	heap.Push(&a.heap, n)
	if len(a.heap) > 2*a.limit {
		a.cut()
	}
}

// cut keeps the nearest limit deadlines and draws the horizon in to the last of them.
func (a *Agenda) cut() {
	slices.SortFunc(a.heap, func(x, y *Entry) int { return x.Due.Compare(y.Due) })
	for _, e := range a.heap[a.limit:] {
		delete(a.byID, e.ID)
	}
	clear(a.heap[a.limit:])
	a.heap = a.heap[:a.limit]
	for i, e := range a.heap {
		e.place = i
	}
	a.horizon = a.heap[a.limit-1].Due
}

// Remove disarms the aggregate's deadline, if it is older than version.
func (a *Agenda) Remove(id string, version int) {
	if old := a.byID[id]; old != nil && old.Version <= version {
		a.remove(old)
	}
}

func (a *Agenda) remove(e *Entry) {
	if e != nil {
		heap.Remove(&a.heap, e.place)
		delete(a.byID, e.ID)
	}
}

// Next returns when the earliest deadline is due; false where there is none.
func (a *Agenda) Next() (time.Time, bool) {
	if len(a.heap) == 0 {
		return time.Time{}, false
	}
	return a.heap[0].Due, true
}

// Pop takes the earliest deadline, if it is due.
func (a *Agenda) Pop(now time.Time) (Entry, bool) {
	if len(a.heap) == 0 || a.heap[0].Due.After(now) {
		return Entry{}, false
	}
	e := *a.heap[0]
	a.remove(a.heap[0])
	return e, true
}

// entries is a heap by due time.
type entries []*Entry

func (h entries) Len() int           { return len(h) }
func (h entries) Less(i, j int) bool { return h[i].Due.Before(h[j].Due) }
func (h entries) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].place, h[j].place = i, j }

// Push implements heap.Interface.
func (h *entries) Push(x any) {
	e := x.(*Entry)
	e.place = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *entries) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
