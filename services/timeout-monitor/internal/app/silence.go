package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
)

// lateness is how late the observer may wake up before it counts as having been
// away itself: a process that was stopped has heard nothing.
const lateness = 2 * time.Second

// Heard takes a heartbeat that has just come; stored is when the stream took it.
func (m *Monitor) Heard(workerID string, stored time.Time) {
	now := m.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silence.Heard(workerID, now, stored)
}

// Deaf says that until now heartbeats could not be heard: no silence before counts.
func (m *Monitor) Deaf() {
	now := m.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silence.Deaf(now)
}

// listen reports silent workers until ctx ends.
func (m *Monitor) listen(ctx context.Context) {
	threshold := m.Rules.Table.WorkerSilence
	if threshold <= 0 {
		return
	}
	for ctx.Err() == nil {
		now := m.Now()
		m.mu.Lock()
		look := m.silence.Look(now)
		m.mu.Unlock()
		m.guard(ctx, look)
		// Whoever connects meanwhile is not silent before one threshold from now.
		next := now.Add(threshold)
		if !look.Next.IsZero() {
			next = minTime(next, look.Next)
		}
		for _, s := range look.Silent {
			if err := m.report(ctx, s); err != nil && ctx.Err() == nil {
				m.Meter.Failed(deadline.KindHeartbeat)
				m.Logger.WarnContext(ctx, "cannot report a silent worker, trying again", "worker", s.ID, "error", err)
			}
			next = minTime(next, m.Now().Add(refillPause))
		}
		next = maxTime(next, m.Now())
		m.sleep(ctx, next, nil)
		if m.Now().Sub(next) > lateness {
			m.Logger.WarnContext(ctx, "was stopped for a while: silence counts anew", "late", m.Now().Sub(next).String())
			m.Deaf()
		}
	}
}

// guard raises the alert when a mass silence begins, and says when it is over.
func (m *Monitor) guard(ctx context.Context, look core.Look) {
	m.mu.Lock()
	before := m.held
	m.held = look.Held
	m.mu.Unlock()
	switch {
	case look.Held && !before:
		m.Meter.Held()
		m.Logger.ErrorContext(ctx, "too many workers are silent at once: none is reported before three times the threshold; look at registry, NATS and the network",
			"quiet", look.Quiet, "workers", look.Workers, "alert", true)
	case before && !look.Held:
		m.Logger.InfoContext(ctx, "the mass silence is over", "quiet", look.Quiet, "workers", look.Workers)
	}
}

// report appends that a worker is silent, unless the stream knows of a heartbeat
// that has not come here. Where the stream cannot be asked, nothing is known.
func (m *Monitor) report(ctx context.Context, s core.Silent) error {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	last, err := m.Heartbeats.Last(ctx, s.ID)
	if err != nil {
		m.Deaf()
		return fmt.Errorf("ask for its last heartbeat: %w", err)
	}
	if last.After(s.LastSeen) {
		if !s.LastSeen.IsZero() || m.Now().Sub(last) < m.Rules.Table.WorkerSilence {
			m.Heard(s.ID, last)
			return nil
		}
		s.LastSeen = last
	}
	for range rounds {
		if err = m.appendSilence(ctx, s); !errors.Is(err, fault.Conflict) {
			break
		}
		m.Meter.Conflict(deadline.KindHeartbeat)
	}
	if err != nil && !errors.Is(err, fault.Precondition) {
		return err
	}
	// A worker that is not connected any more is about to leave the list.
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silence.Told(s.ID, m.Now())
	return nil
}

func (m *Monitor) appendSilence(ctx context.Context, s core.Silent) error {
	w, h, err := load(ctx, m.Log, aggregate.WorkerStream(s.ID), aggregate.EvolveWorker)
	if err != nil {
		return err
	}
	now, threshold := m.Now(), m.Rules.Table.WorkerSilence
	r, err := core.SilentWorker(w, s.Since, s.LastSeen, now, threshold)
	if err != nil {
		return err
	}
	c, err := aggregate.WorkerChange(w, h.own(h.watch.Cause), r.Worker)
	if err != nil {
		return err
	}
	if _, err := m.Log.Append(ctx, store.Append{Changes: []store.Change{c}}); err != nil {
		return fmt.Errorf("append the silence of worker %s: %w", s.ID, err)
	}
	m.fired.Add(1)
	m.Meter.Fired(deadline.KindHeartbeat, now.Sub(s.Since.Add(threshold)))
	m.Logger.WarnContext(ctx, "a worker is silent", "worker", s.ID, "state", w.State, "job", w.JobID, "attempt", w.Attempt, "last_seen", s.LastSeen)
	return nil
}
