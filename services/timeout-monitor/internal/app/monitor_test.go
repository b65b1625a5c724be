package app_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/timeout-monitor/core"
	"hodei.dev/services/timeout-monitor/internal/app"
)

var rules = core.Rules{Table: deadline.Defaults(), IdleTimeout: core.DefaultIdleTimeout}

// ground is a log and stored deadlines that misbehave on demand.
type ground struct {
	mu      sync.Mutex
	streams map[string][]event.Event
	rows    map[string]app.Row
	refuse  error // of every append
	refused []time.Time
	running int
	most    int
	looks   int
}

func newGround() *ground {
	return &ground{streams: map[string][]event.Event{}, rows: map[string]app.Row{}}
}

func (g *ground) Load(_ context.Context, s event.Stream, _ int) ([]event.Event, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams[s.ID], nil
}

func (g *ground) Append(_ context.Context, a store.Append) ([]event.Event, error) {
	g.mu.Lock()
	g.running++
	g.most = max(g.most, g.running)
	g.mu.Unlock()
	time.Sleep(time.Millisecond) // of the bubble's clock: appends overlap
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.refuse != nil {
		g.refused = append(g.refused, time.Now())
		return nil, g.refuse
	}
	var out []event.Event
	for _, c := range a.Changes {
		have := g.streams[c.Stream.ID]
		if len(have) != c.Expected {
			return nil, &store.ConflictError{Stream: c.Stream, Expected: c.Expected, Actual: len(have)}
		}
		for _, e := range c.Events {
			e.StreamVersion, e.Time = len(have)+1, time.Now()
			have = append(have, e)
			out = append(out, e)
		}
		g.streams[c.Stream.ID] = have
	}
	return out, nil
}

func (g *ground) Upcoming(_ context.Context, through time.Time, limit int) ([]core.Entry, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.looks++
	var out []core.Entry
	for _, r := range g.rows {
		if r.Armed && !r.Deadline.Due.After(through) && len(out) < limit {
			out = append(out, r.Entry())
		}
	}
	return out, nil
}

func (g *ground) Connected(context.Context) ([]string, error) { return nil, nil }
func (g *ground) Correct(_ context.Context, r app.Row) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rows[r.ID] = r
	return nil
}
func (g *ground) Hold(context.Context, string, int, time.Time, int) error { return nil }
func (g *ground) Idle(context.Context, string, []string) (int, error)     { return 0, nil }
func (g *ground) Last(context.Context, string) (time.Time, error)         { return time.Time{}, nil }
func (g *ground) Fired(string, time.Duration)                             {}
func (g *ground) Failed(string)                                           {}
func (g *ground) Conflict(string)                                         {}
func (g *ground) Held()                                                   {}

// queue appends a PENDING job and returns its row.
func (g *ground) queue(t *testing.T, timeout time.Duration) app.Row {
	t.Helper()
	id := event.NewID()
	facts, err := job.Create(job.Spec{Name: "j", Command: []string{"true"}, QueueTimeout: unit.Duration(timeout)}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	c, err := aggregate.JobChange(job.Job{ID: id}, event.Meta{Source: "test", CorrelationID: "c", Actor: "user/ann"}, facts)
	if err != nil {
		t.Fatal(err)
	}
	r := app.Row{Type: core.Job, ID: id}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, e := range c.Events {
		e.StreamVersion, e.Time = i+1, time.Now()
		g.streams[id] = append(g.streams[id], e)
		r.Watch = r.Watch.Observe(facts[i], core.At{Version: i + 1, Time: e.Time, ID: e.ID})
	}
	r.Deadline, r.Armed = rules.Deadline(core.Job, r.Watch, nil)
	g.rows[id] = r
	return r
}

func (g *ground) state(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var w core.Watch
	for _, e := range g.streams[id] {
		fact, _ := aggregate.Decode(e)
		w = w.Observe(fact, core.At{Version: e.StreamVersion, Time: e.Time, ID: e.ID})
	}
	return w.State
}

// inBubble runs fn beside a monitor, by a clock that jumps.
func inBubble(t *testing.T, g *ground, fn func(m *app.Monitor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := app.New(app.Config{
			Rules: rules, Log: g, Deadlines: g, Heartbeats: g, Meter: g, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Jitter: func() float64 { return 0 },
			Concurrency: 4, Nearby: 1000, Window: time.Hour,
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		fn(m)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFiresToTheSecondAlsoBeyondTheWindow(t *testing.T) {
	g := newGround()
	inBubble(t, g, func(m *app.Monitor) {
		near, far := g.queue(t, 10*time.Minute), g.queue(t, 5*time.Hour)
		m.Observe([]app.Row{near, far})
		for _, r := range []app.Row{near, far} {
			time.Sleep(time.Until(r.Deadline.Due) - time.Second)
			if s := g.state(r.ID); s != "PENDING" {
				t.Errorf("%s a second before", s)
			}
			time.Sleep(1100 * time.Millisecond)
			if s := g.state(r.ID); s != "TIMEOUT" {
				t.Errorf("%s after", s)
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.looks > 12 {
			t.Errorf("%d looks at the stored deadlines in five hours", g.looks)
		}
	})
}

// TestARowThatIsCommittedWhileTheMonitorLooks: it was not stored yet when the
// monitor looked, and beyond the horizon when it was told.
func TestARowThatIsCommittedWhileTheMonitorLooks(t *testing.T) {
	g := newGround()
	inBubble(t, g, func(m *app.Monitor) {
		time.Sleep(29 * time.Minute)
		r := g.queue(t, 45*time.Minute)
		g.mu.Lock()
		delete(g.rows, r.ID)
		g.mu.Unlock()
		m.Observe([]app.Row{r})
		time.Sleep(2 * time.Minute)
		g.mu.Lock()
		g.rows[r.ID] = r
		g.mu.Unlock()
		time.Sleep(43*time.Minute + time.Second)
		if s := g.state(r.ID); s != "TIMEOUT" {
			t.Errorf("%s after", s)
		}
	})
}

func TestWhatChangedMeanwhileIsNotRecovered(t *testing.T) {
	g := newGround()
	inBubble(t, g, func(m *app.Monitor) {
		r := g.queue(t, time.Minute)
		m.Observe([]app.Row{r})
		j, err := aggregate.LoadJob(t.Context(), g, r.ID)
		if err != nil {
			t.Fatal(err)
		}
		facts, err := j.RequestCancel("ann", "")
		if err != nil {
			t.Fatal(err)
		}
		c, err := aggregate.JobChange(j, event.Meta{Source: "test", CorrelationID: "c", Actor: "user/ann"}, facts)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Append(t.Context(), store.Append{Changes: []store.Change{c}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute) // the projection says nothing
		if s := g.state(r.ID); s != "CANCELLED" || m.Figures().Fired != 0 || m.Figures().Nearby != 0 {
			t.Errorf("%s, %+v", s, m.Figures())
		}
	})
}

func TestAnAppendThatFailsIsRepeatedWithBackoff(t *testing.T) {
	for name, refuse := range map[string]error{"Postgres is away": fault.New(fault.Unavailable, "away"), "a conflict that stays": fault.New(fault.Conflict, "no")} {
		t.Run(name, func(t *testing.T) {
			g := newGround()
			inBubble(t, g, func(m *app.Monitor) {
				g.mu.Lock()
				g.refuse = refuse
				g.mu.Unlock()
				r := g.queue(t, time.Minute)
				m.Observe([]app.Row{r})
				time.Sleep(6 * time.Minute)
				g.mu.Lock()
				tries := len(g.refused)
				g.refuse = nil
				g.mu.Unlock()
				if tries < 5 || tries > 60 {
					t.Errorf("tried %d times in five minutes", tries)
				}
				time.Sleep(time.Minute + time.Second)
				if s := g.state(r.ID); s != "TIMEOUT" || m.Figures().Fired != 1 {
					t.Errorf("%s, %+v", s, m.Figures())
				}
			})
		})
	}
}

func TestFiringIsBounded(t *testing.T) {
	g := newGround()
	inBubble(t, g, func(m *app.Monitor) {
		var rows []app.Row
		for range 100 {
			rows = append(rows, g.queue(t, time.Minute))
		}
		m.Observe(rows)
		time.Sleep(2 * time.Minute)
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.most != 4 || m.Figures().Fired != 100 {
			t.Errorf("%d at once, %d fired", g.most, m.Figures().Fired)
		}
	})
}
