// Package app is the timeout-monitor at work: it keeps the near future in memory,
// waits for the earliest deadline, and when one has passed asks the log what is true
// now, the domain what follows, and appends that. Nothing is scanned on a timer.
//
//	projection ──Observe──▶ agenda ──one timer──▶ fire (at most 32 at once) ──▶ the log
//	telemetry ──Heard─────▶ silence ─one timer──▶ report ──────────────────────▶ the log
package app

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hodei.dev/services/timeout-monitor/core"
)

// Config says what the monitor works with. All fields are required.
type Config struct {
	Rules      core.Rules
	Log        Log
	Deadlines  Deadlines
	Heartbeats Heartbeats
	Meter      Meter
	Logger     *slog.Logger
	Now        func() time.Time
	// Jitter returns numbers from 0 up to 1: chance, where a policy has any.
	Jitter func() float64
	// Concurrency is how many deadlines are recovered at once.
	Concurrency int
	// Nearby is about how many deadlines are held in memory, Window how far ahead at most.
	Nearby int
	Window time.Duration
}

// Monitor is one activation of the monitor. Observe, Heard, Deaf and Figures may
// be called from any goroutine.
type Monitor struct {
	Config
	wake  chan struct{}
	idle  sync.Mutex // held while a worker is judged idle: two at once could go below min_idle
	fired atomic.Int64

	mu       sync.Mutex // guards what follows
	agenda   *core.Agenda
	silence  *core.Silence
	handled  map[string]handled
	inFlight map[string]bool
	// leaving are workers that were ended because they were idle: they may stand in
	// the rows as READY until the projection's transaction is committed. The time is
	// when the projection told of it; zero before.
	leaving  map[string]time.Time
	refillAt time.Time
	cut      bool // the last refill did not get everything up to the window's end
	held     bool // a mass silence is going on
}

// handled says that what follows from a deadline is in the log, but may not have
// come back through the projection yet.
type handled struct {
	version int
	at      time.Time
}

// handledFor bounds how long that is believed: an aggregate whose events are
// parked never comes back.
const handledFor = time.Minute

// committedAfter is when what the projection has told is surely committed.
const committedAfter = 10 * time.Second

// refillPause is the least time between two looks at the stored deadlines.
const refillPause = time.Second

// New returns a monitor that has not started, and listens from now on.
func New(cfg Config) *Monitor {
	return &Monitor{
		Config: cfg, wake: make(chan struct{}, 1),
		agenda: core.NewAgenda(cfg.Nearby), silence: core.NewSilence(cfg.Rules.Table.WorkerSilence, cfg.Now()),
		handled: map[string]handled{}, inFlight: map[string]bool{}, leaving: map[string]time.Time{},
	}
}

// Figures are what the monitor shows of itself.
type Figures struct {
	// Nearby deadlines are in memory; Workers are listened to.
	Nearby, Workers int
	// NextDue is the earliest deadline; zero where none is near.
	NextDue time.Time
	// Fired counts the recoveries that are in the log.
	Fired int64
	// Held is whether a mass silence keeps workers from being reported.
	Held bool
}

// Figures returns a copy.
func (m *Monitor) Figures() Figures {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := Figures{Nearby: m.agenda.Len(), Workers: m.silence.Workers(), Fired: m.fired.Load(), Held: m.held}
	f.NextDue, _ = m.agenda.Next()
	return f
}

// Observe takes over what the projection has made of new events. It may be told
// too early or twice: what counts is read from the log when a deadline is due.
func (m *Monitor) Observe(rows []Row) {
	now := m.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range rows {
		if h, ok := m.handled[r.ID]; ok && r.Watch.Version >= h.version {
			delete(m.handled, r.ID)
		}
		if r.Armed {
			m.agenda.Put(r.Entry())
		} else {
			m.agenda.Remove(r.ID, r.Watch.Version)
		}
		if r.Type != core.Worker {
			continue
		}
		if r.Watch.Connected(r.Type) {
			m.silence.Connected(r.ID, now)
		} else {
			m.silence.Gone(r.ID)
		}
		if told, ok := m.leaving[r.ID]; ok && told.IsZero() {
			m.leaving[r.ID] = now
		}
	}
	nudge(m.wake)
}

// Run fires deadlines until ctx ends; then it returns nil, after the last recovery.
func (m *Monitor) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
	if !m.begin(ctx) {
		return nil
	}
	work.Go(func() { m.listen(ctx) })
	slots := make(chan struct{}, m.Concurrency)
	for ctx.Err() == nil {
		next := m.refill(ctx)
		for {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return nil
			}
			e, ok := m.take()
			if !ok {
				<-slots
				break
			}
			work.Go(func() {
				defer func() { <-slots }()
				m.settle(ctx, e)
			})
		}
		m.sleep(ctx, next, m.wake)
	}
	return nil
}

// begin learns which workers are connected; it tries until it knows.
func (m *Monitor) begin(ctx context.Context) bool {
	for ctx.Err() == nil {
		ids, err := m.Deadlines.Connected(ctx)
		if err == nil {
			now := m.Now()
			m.mu.Lock()
			for _, id := range ids {
				m.silence.Connected(id, now)
			}
			m.mu.Unlock()
			return true
		}
		m.Logger.WarnContext(ctx, "cannot read the connected workers, trying again", "error", err)
		m.sleep(ctx, m.Now().Add(refillPause), nil)
	}
	return false
}

// take pops a deadline that is due and that nobody works on.
func (m *Monitor) take() (core.Entry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		e, ok := m.agenda.Pop(m.Now())
		if !ok {
			return e, false
		}
		if !m.inFlight[e.ID] {
			m.inFlight[e.ID] = true
			return e, true
		}
		// Its recovery is under way and will show; if not, it is due again.
		e.Due = m.Now().Add(refillPause)
		m.agenda.Put(e)
	}
}

// refill extends the agenda where it is time, and returns when to look again if
// nothing else happens. It looks again no later than the horizon that was before: a
// deadline that came while it looked, too far off to be put on the agenda and not
// committed yet, was beyond that.
func (m *Monitor) refill(ctx context.Context) time.Time {
	now := m.Now()
	m.mu.Lock()
	at := m.refillAt
	if m.cut && m.agenda.Len() > m.Nearby/4 {
		at = maxTime(at, now.Add(refillPause))
	}
	if now.Before(at) {
		next, ok := m.agenda.Next()
		m.mu.Unlock()
		if ok && next.Before(at) {
			return next
		}
		return at
	}
	before := m.agenda.Horizon()
	m.agenda.Extend(now.Add(m.Window))
	for id, h := range m.handled {
		if now.Sub(h.at) > handledFor {
			delete(m.handled, id)
		}
	}
	m.mu.Unlock()

	entries, err := m.Deadlines.Upcoming(ctx, now.Add(m.Window), m.Nearby)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			m.Logger.WarnContext(ctx, "cannot read the stored deadlines, trying again", "error", err)
		}
		m.agenda.Extend(before)
		m.refillAt = now.Add(refillPause)
	} else {
		for _, e := range entries {
			if h, ok := m.handled[e.ID]; (!ok || e.Version > h.version) && !m.inFlight[e.ID] {
				m.agenda.Put(e)
			}
		}
		m.refillAt = now.Add(m.Window / 2)
		if m.cut = len(entries) == m.Nearby; m.cut {
			m.agenda.Extend(minTime(m.agenda.Horizon(), entries[len(entries)-1].Due))
			m.refillAt = maxTime(minTime(before, m.agenda.Horizon()), now.Add(refillPause))
		}
	}
	next, ok := m.agenda.Next()
	if ok && next.Before(m.refillAt) {
		return next
	}
	return m.refillAt
}

// sleep waits until a time, or until it is woken.
func (m *Monitor) sleep(ctx context.Context, until time.Time, wake <-chan struct{}) {
	t := time.NewTimer(until.Sub(m.Now()))
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
	}
}

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
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
