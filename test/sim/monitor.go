package sim

import (
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/timeout-monitor/core"
)

// lateness is how late the observer may wake up before it counts as having been away.
const lateness = 2 * time.Second

// row is a stored deadline: it outlives the monitor's process.
type row struct {
	typ   core.Type
	watch core.Watch
	// held moves the deadline of that version.
	held        time.Time
	heldVersion int
}

// timeoutMonitor mirrors services/timeout-monitor/internal/app: an agenda of stored
// deadlines, and an ear for heartbeats.
type timeoutMonitor struct {
	*process
	w        *world
	rules    core.Rules
	agenda   *core.Agenda
	silence  *core.Silence
	inFlight map[string]bool
	planned  time.Time
}

func (w *world) watchClock(p *process) {
	m := &timeoutMonitor{
		process: p, w: w, rules: core.Rules{Table: deadline.Defaults(), IdleTimeout: core.DefaultIdleTimeout},
		agenda: core.NewAgenda(10_000), inFlight: map[string]bool{},
	}
	m.silence = core.NewSilence(m.rules.Table.WorkerSilence, m.clock())
	m.agenda.Extend(m.clock().Add(1000 * time.Hour))
	w.monitor = m
	p.start(func(t *task) {
		for _, s := range w.log.order {
			if r := w.rows[s.id]; r != nil {
				m.arm(s.id, r)
			}
		}
		w.log.follow(p, w.positions[catalogue.TimeoutMonitor], m.project, func(at int64) { w.positions[catalogue.TimeoutMonitor] = at })
		m.listen(t)
	})
}

// project folds an event into the aggregate's row, and arms what it is under.
func (m *timeoutMonitor) project(_ *task, f fact) error {
	if f.Stream.Type == catalogue.Provider {
		return nil
	}
	r := m.w.rows[f.Stream.ID]
	if r == nil {
		r = &row{typ: core.Type(f.Stream.Type)}
		m.w.rows[f.Stream.ID] = r
	}
	r.watch = r.watch.Observe(f.says, core.At{Version: f.StreamVersion, Time: f.Time, ID: f.ID})
	m.arm(f.Stream.ID, r)
	return nil
}

func (m *timeoutMonitor) arm(id string, r *row) {
	if r.watch.Connected(r.typ) {
		m.silence.Connected(id, m.clock())
	} else if r.typ == core.Worker {
		m.silence.Gone(id)
	}
	d, ok := m.rules.Deadline(r.typ, r.watch, m.provider(r.watch.ProviderID))
	if !ok {
		m.agenda.Remove(id, r.watch.Version)
		return
	}
	if r.heldVersion == r.watch.Version && r.held.After(d.Due) {
		d.Due = r.held
	}
	m.agenda.Put(core.Entry{Type: r.typ, ID: id, Version: r.watch.Version, Due: d.Due})
	m.plan()
}

func (m *timeoutMonitor) provider(id string) *core.Provider {
	if s := m.w.log.get(id); s.version > 0 {
		p := core.ProviderOf(s.provider.Spec)
		return &p
	}
	return nil
}

// plan sets the one timer to the earliest deadline.
func (m *timeoutMonitor) plan() {
	next, ok := m.agenda.Next()
	if !ok || !m.planned.IsZero() && !next.Before(m.planned) {
		return
	}
	m.planned = next
	m.later(max(next.Sub(m.clock()), 0)+time.Millisecond, func() {
		if m.planned.Equal(next) {
			m.planned = time.Time{}
		}
		m.fire()
	})
}

func (m *timeoutMonitor) fire() {
	for {
		e, ok := m.agenda.Pop(m.clock())
		if !ok {
			break
		}
		if m.inFlight[e.ID] {
			e.Due = m.clock().Add(time.Second)
			m.agenda.Put(e)
			continue
		}
		m.inFlight[e.ID] = true
		m.start(func(t *task) { m.settle(t, e) })
	}
	m.plan()
}

func (m *timeoutMonitor) settle(t *task, e core.Entry) {
	var err error
	for range rounds {
		if err = m.recover(t, e); !isConflict(err) {
			break
		}
	}
	delete(m.inFlight, e.ID)
	if err != nil {
		e.Tries++
		e.Due = m.clock().Add(min(core.Again(time.Second, e.Tries-1), time.Minute))
		m.agenda.Put(e)
	}
	m.plan()
}

// recover decides about one aggregate from what the log says now, and appends it.
func (m *timeoutMonitor) recover(t *task, e core.Entry) error {
	if err := m.w.log.read(t); err != nil {
		return err
	}
	s, now := m.w.log.get(e.ID), m.clock()
	d, armed := m.rules.Deadline(e.Type, s.watch, m.provider(s.watch.ProviderID))
	if !armed || d.Due.After(now) {
		m.w.rows[e.ID].watch = s.watch
		m.arm(e.ID, m.w.rows[e.ID])
		return nil
	}
	meta := m.w.log.cause(s, d.Cause).CausedBy(core.Name)
	var a store.Append
	var r core.Recovery
	var err error
	j, w := s.job, s.worker
	if e.Type == core.Job {
		w = m.w.log.get(j.WorkerID).worker
		r, err = m.rules.RecoverJob(d, j, w, now, m.rng.Float64())
	} else {
		meta.CorrelationID = s.created.CorrelationID
		r, err = m.rules.RecoverWorker(d, w, m.provider(w.ProviderID), m.idle(w.ProviderID), now)
	}
	if err != nil {
		return err
	}
	if r.Empty() {
		hold := m.w.rows[e.ID]
		hold.held, hold.heldVersion = now.Add(core.Again(d.Threshold, e.Tries)), s.version
		m.agenda.Put(core.Entry{Type: e.Type, ID: e.ID, Version: s.version, Due: hold.held, Tries: e.Tries + 1})
		return nil
	}
	m.w.timeout(d, s)
	jobChange(&a, j, meta, r.Job)
	workerChange(&a, w, meta, r.Worker)
	_, err = m.w.log.append(t, m.w.log.sign(a))
	return err
}

// idle counts the READY workers of a provider.
func (m *timeoutMonitor) idle(providerID string) (n int) {
	for _, s := range m.w.log.order {
		if s.typ == catalogue.Worker && s.worker.State == worker.StateReady && s.worker.ProviderID == providerID {
			n++
		}
	}
	return n
}

// listen reports silent workers.
func (m *timeoutMonitor) listen(t *task) {
	for {
		look := m.silence.Look(m.clock())
		next := m.clock().Add(m.silence.Threshold)
		if !look.Next.IsZero() && look.Next.Before(next) {
			next = look.Next
		}
		for _, s := range look.Silent {
			_ = m.report(t, s) // where that failed, it is silent still
			next = m.clock().Add(time.Second)
		}
		t.sleep(max(next.Sub(m.clock()), time.Millisecond))
		if m.clock().Sub(next) > lateness {
			m.silence.Deaf(m.clock())
		}
	}
}

func (m *timeoutMonitor) report(t *task, s core.Silent) error {
	if last := m.w.beats[s.ID]; last.After(s.LastSeen) {
		if !s.LastSeen.IsZero() || m.clock().Sub(last) < m.silence.Threshold {
			m.silence.Heard(s.ID, m.clock(), last)
			return nil
		}
		s.LastSeen = last
	}
	err := m.w.log.read(t)
	for range rounds {
		if isAway(err) {
			break
		}
		st := m.w.log.get(s.ID)
		r, derr := core.SilentWorker(st.worker, s.Since, s.LastSeen, m.clock(), m.silence.Threshold)
		if derr != nil {
			break
		}
		meta := st.last.CausedBy(core.Name)
		meta.CorrelationID = st.created.CorrelationID
		var a store.Append
		workerChange(&a, st.worker, meta, r.Worker)
		if _, err = m.w.log.append(t, m.w.log.sign(a)); !isConflict(err) {
			break
		}
	}
	if err == nil {
		m.silence.Told(s.ID, m.clock())
	}
	return err
}

// cause is the event of a stream with an id, else its first.
func (l *eventLog) cause(s *stream, id string) event.Event {
	if p, ok := l.ids[id]; ok {
		return l.events[p-1].Event
	}
	return s.created
}
