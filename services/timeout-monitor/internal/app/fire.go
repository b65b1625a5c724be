package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
)

// rounds is how often a decision that came too late is made again at once.
const rounds = 5

// appendTimeout bounds one recovery.
const appendTimeout = 15 * time.Second

// settle recovers one aggregate whose deadline has passed, and puts it back where
// that failed: with backoff, never at once.
func (m *Monitor) settle(ctx context.Context, e core.Entry) {
	ctx, cancel := context.WithTimeout(ctx, appendTimeout)
	defer cancel()
	var err error
	for range rounds {
		if err = m.fire(ctx, e); !errors.Is(err, fault.Conflict) {
			break
		}
		m.Meter.Conflict(string(e.Type))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.inFlight, e.ID)
	nudge(m.wake)
	if err == nil {
		return
	}
	e.Tries++
	wait := core.Again(time.Second, e.Tries-1)
	e.Due = m.Now().Add(min(wait, time.Minute))
	m.agenda.Put(e)
	m.Meter.Failed(string(e.Type))
	m.Logger.WarnContext(ctx, "cannot recover what has timed out, trying again", "aggregate", string(e.Type)+"/"+e.ID, "tries", e.Tries, "in", wait, "error", err)
}

// fire decides about one aggregate from what the log says now, and appends it.
func (m *Monitor) fire(ctx context.Context, e core.Entry) error {
	if e.Type == core.Job {
		return m.fireJob(ctx, e)
	}
	return m.fireWorker(ctx, e)
}

func (m *Monitor) fireJob(ctx context.Context, e core.Entry) error {
	j, h, err := load(ctx, m.Log, aggregate.JobStream(e.ID), aggregate.EvolveJob)
	if err != nil {
		return err
	}
	d, due, err := m.due(ctx, e, h)
	if err != nil || !due {
		return err
	}
	var w worker.Worker
	if j.WorkerID != "" {
		if w, _, err = load(ctx, m.Log, aggregate.WorkerStream(j.WorkerID), aggregate.EvolveWorker); err != nil {
			return err
		}
	}
	r, err := m.Rules.RecoverJob(d, j, w, m.Now(), m.Jitter())
	if err != nil {
		return fmt.Errorf("recover job %s from %s: %w", j.ID, d.State, err)
	}
	if r.Empty() {
		return m.hold(ctx, e, h, core.Again(d.Threshold, e.Tries), e.Tries+1)
	}
	return m.append(ctx, d, h, h.meta(d.Cause), j, w, r)
}

func (m *Monitor) fireWorker(ctx context.Context, e core.Entry) error {
	w, h, err := load(ctx, m.Log, aggregate.WorkerStream(e.ID), aggregate.EvolveWorker)
	if err != nil {
		return err
	}
	d, due, err := m.due(ctx, e, h)
	if err != nil || !due {
		return err
	}
	var p *core.Provider
	var idle int
	if d.Kind == core.Idle {
		m.idle.Lock()
		defer m.idle.Unlock()
		if p, err = m.provider(ctx, w.ProviderID); err != nil {
			return err
		}
		if p != nil && p.MinIdle > 0 {
			if idle, err = m.Deadlines.Idle(ctx, w.ProviderID, m.gone()); err != nil {
				return err
			}
		}
	}
	r, err := m.Rules.RecoverWorker(d, w, p, idle, m.Now())
	if err != nil {
		return fmt.Errorf("recover worker %s from %s: %w", w.ID, d.State, err)
	}
	if r.Empty() {
		// One of those that are kept: it is looked at again after another idle timeout.
		return m.hold(ctx, e, h, d.Threshold, 0)
	}
	if d.Kind == core.Idle {
		m.mu.Lock()
		m.leaving[w.ID] = time.Time{}
		m.mu.Unlock()
	}
	err = m.append(ctx, d, h, h.own(d.Cause), job.Job{}, w, r)
	if err != nil {
		m.mu.Lock()
		delete(m.leaving, w.ID)
		m.mu.Unlock()
	}
	return err
}

// gone lists the workers that do not count as idle any more, whatever the rows say.
func (m *Monitor) gone() []string {
	now := m.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]string, 0, len(m.leaving))
	for id, told := range m.leaving {
		if !told.IsZero() && now.Sub(told) > committedAfter {
			delete(m.leaving, id)
			continue
		}
		out = append(out, id)
	}
	return out
}

// due tells whether the aggregate is, by the log, under a deadline that has
// passed. Where it is not, what was remembered of it is corrected.
func (m *Monitor) due(ctx context.Context, e core.Entry, h history) (core.Deadline, bool, error) {
	row := Row{Type: e.Type, ID: e.ID, Watch: h.watch}
	var p *core.Provider
	if h.watch.ProviderID != "" {
		var err error
		if p, err = m.provider(ctx, h.watch.ProviderID); err != nil {
			return core.Deadline{}, false, err
		}
	}
	row.Deadline, row.Armed = m.Rules.Deadline(e.Type, h.watch, p)
	if row.Armed && !row.Deadline.Due.After(m.Now()) {
		return row.Deadline, true, nil
	}
	if err := m.Deadlines.Correct(ctx, row); err != nil {
		return core.Deadline{}, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if row.Armed {
		m.agenda.Put(row.Entry())
	} else {
		m.agenda.Remove(e.ID, h.watch.Version)
	}
	return core.Deadline{}, false, nil
}

// provider is a provider's settings by the log: the projection tells of deadlines
// before its transaction is committed, so its own table may not have them yet.
func (m *Monitor) provider(ctx context.Context, id string) (*core.Provider, error) {
	p, err := aggregate.LoadProvider(ctx, m.Log, id)
	if errors.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // a provider that the log does not have has no settings of its own
	}
	if err != nil {
		return nil, err
	}
	settings := core.ProviderOf(p.Spec)
	return &settings, nil
}

// hold waits for what is under way already.
func (m *Monitor) hold(ctx context.Context, e core.Entry, h history, wait time.Duration, times int) error {
	e.Due, e.Tries, e.Version = m.Now().Add(wait), times, h.watch.Version
	if err := m.Deadlines.Hold(ctx, e.ID, e.Version, e.Due, times); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.agenda.Put(e)
	return nil
}

// append makes the recovery true, of the job and of the worker together.
func (m *Monitor) append(ctx context.Context, d core.Deadline, h history, meta event.Meta, j job.Job, w worker.Worker, r core.Recovery) error {
	var a store.Append
	if len(r.Job) > 0 {
		c, err := aggregate.JobChange(j, meta, r.Job)
		if err != nil {
			return err
		}
		a.Changes = append(a.Changes, c)
	}
	if len(r.Worker) > 0 {
		c, err := aggregate.WorkerChange(w, meta, r.Worker)
		if err != nil {
			return err
		}
		a.Changes = append(a.Changes, c)
	}
	stored, err := m.Log.Append(ctx, a)
	if err != nil {
		return fmt.Errorf("append what follows from the deadline of %s: %w", d.State, err)
	}
	now := m.Now()
	m.mu.Lock()
	for _, s := range stored {
		m.handled[s.Stream.ID] = handled{version: s.StreamVersion, at: now}
	}
	m.mu.Unlock()
	m.fired.Add(1)
	m.Meter.Fired(string(d.Kind), now.Sub(d.Due))
	level := slog.LevelWarn
	if d.Kind == core.Idle {
		level = slog.LevelInfo // the ordinary end of a worker that nobody needs
	}
	m.Logger.Log(ctx, level, "timed out", "aggregate", h.stream(), "state", d.State, "kind", d.Kind, "attempt", d.Attempt,
		"threshold", d.Threshold.String(), "correlation_id", meta.CorrelationID)
	return nil
}

// history is what the log says of one aggregate.
type history struct {
	events []event.Event
	watch  core.Watch
}

func (h history) stream() string { return h.events[0].Stream.String() }

// meta is the context of what follows from the event that armed the deadline.
func (h history) meta(cause string) event.Meta {
	i := slices.IndexFunc(h.events, func(e event.Event) bool { return e.ID == cause })
	return h.events[max(i, 0)].CausedBy(core.Name)
}

// own is like meta, under the correlation id of the aggregate's own life.
func (h history) own(cause string) event.Meta {
	meta := h.meta(cause)
	meta.CorrelationID = h.events[0].CorrelationID
	return meta
}

// load folds an aggregate, and its deadline, from its events.
func load[A any](ctx context.Context, l aggregate.Loader, s event.Stream, evolve func(A, event.Event) (A, error)) (A, history, error) {
	var a A
	events, err := l.Load(ctx, s, 0)
	if err != nil {
		return a, history{}, fmt.Errorf("load %s: %w", s, err)
	}
	if len(events) == 0 {
		return a, history{}, fault.New(fault.Internal, "there is no %s in the log", s)
	}
	h := history{events: events}
	for _, e := range events {
		if a, err = evolve(a, e); err != nil {
			return a, h, err
		}
		fact, err := aggregate.Decode(e)
		if err != nil {
			return a, h, err
		}
		h.watch = h.watch.Observe(fact, core.At{Version: e.StreamVersion, Time: e.Time, ID: e.ID})
	}
	return a, h, nil
}
