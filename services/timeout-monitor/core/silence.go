package core

import (
	"cmp"
	"slices"
	"time"
)

// The guard against a mass silence: more than a third of the workers do not die in
// one moment; what they were heard through does.
const (
	// guardShare of the workers, in percent, may be unheard of at once.
	guardShare = 30
	// guardWorkers is how many there must be for a share to mean anything.
	guardWorkers = 4
	// guardWindows is after how many thresholds of silence a worker is reported all the same.
	guardWindows = 3
)

// Silence watches the heartbeats of the connected workers. Silence counts from the
// latest of: the last heartbeat, the worker's connection, and the moment since when
// the observer can hear. Times are the observer's own. Not safe for concurrent use.
type Silence struct {
	// Threshold is after how long a worker counts as silent; 0 = never.
	Threshold time.Duration

	hearing time.Time // since when heartbeats would have been heard
	workers map[string]*heard
}

type heard struct {
	connected, heartbeat time.Time
	stored               time.Time // of the last heartbeat, by the stream's clock
	told                 int       // how often this silence was reported
	toldAt               time.Time
}

// NewSilence begins to watch now.
func NewSilence(threshold time.Duration, now time.Time) *Silence {
	return &Silence{Threshold: threshold, hearing: now, workers: map[string]*heard{}}
}

// Connected notes that heartbeats of the worker are expected from now on. Again is harmless.
func (s *Silence) Connected(id string, now time.Time) {
	if s.workers[id] == nil {
		s.workers[id] = &heard{connected: now}
	}
}

// Gone notes that no heartbeat of the worker is expected any more.
func (s *Silence) Gone(id string) { delete(s.workers, id) }

// Heard notes that a heartbeat came now, which the stream took at stored. One of a worker
// that is not connected, as far as known, means nothing.
func (s *Silence) Heard(id string, now, stored time.Time) {
	if h := s.workers[id]; h != nil {
		h.heartbeat, h.stored, h.told = now, stored, 0
	}
}

// Deaf notes that until now nothing could be heard, so no silence before counts.
func (s *Silence) Deaf(now time.Time) { s.hearing = now }

// Workers is how many are watched.
func (s *Silence) Workers() int { return len(s.workers) }

// Silent is a worker that has not been heard of for too long.
type Silent struct {
	ID string
	// Since when the silence counts; LastSeen is the last heartbeat by the stream's
	// clock, zero where none was heard.
	Since, LastSeen time.Time
}

// Look is what a look at the workers finds.
type Look struct {
	// Silent are to be reported now, the longest silence first.
	Silent []Silent
	// Quiet of all Workers have missed several heartbeats; Held: so many that nothing
	// is reported before they have been silent for three thresholds.
	Quiet, Workers int
	Held           bool
	// Next is when to look again; zero where there is nobody to look at.
	Next time.Time
}

// Look finds who is silent now. A worker counts as quiet, for the guard, from half
// the threshold on: heartbeats are spread, so those that stopped together pass the
// threshold one after the other, and the first of them must not be reported before
// the others are noticed.
func (s *Silence) Look(now time.Time) Look {
	out := Look{Workers: len(s.workers)}
	if s.Threshold <= 0 {
		return out
	}
	for _, h := range s.workers {
		if now.Sub(s.since(h)) > s.Threshold/2 {
			out.Quiet++
		}
	}
	guarded := out.Workers >= guardWorkers && out.Quiet*100 > out.Workers*guardShare
	for id, h := range s.workers {
		since, due := s.since(h), s.due(h)
		if !due.After(now) && guarded && now.Sub(since) < guardWindows*s.Threshold {
			out.Held = true
			// Whether it is still held depends on the others, who may be heard any time.
			due = minTime(since.Add(guardWindows*s.Threshold), now.Add(s.Threshold/8))
		} else if !due.After(now) {
			out.Silent = append(out.Silent, Silent{ID: id, Since: since, LastSeen: h.stored})
			continue
		}
		if out.Next.IsZero() || due.Before(out.Next) {
			out.Next = due
		}
	}
	slices.SortFunc(out.Silent, func(a, b Silent) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return out
}

// Told notes: the worker's silence was reported. It is reported again, with backoff, as
// long as it is connected and silent: who heard of it may have known better then.
func (s *Silence) Told(id string, now time.Time) {
	if h := s.workers[id]; h != nil {
		h.told, h.toldAt = h.told+1, now
	}
}

func (s *Silence) since(h *heard) time.Time {
	return maxTime(s.hearing, maxTime(h.connected, h.heartbeat))
}

// due is when the worker's silence has to be reported (again).
func (s *Silence) due(h *heard) time.Time {
	due := s.since(h).Add(s.Threshold)
	if h.told > 0 {
		due = maxTime(due, h.toldAt.Add(Again(s.Threshold, h.told-1)))
	}
	return due
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
