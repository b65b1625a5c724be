package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/nats"
	"hodei.dev/services/registry/internal/postgres"
)

const (
	// saveEvery is how often the times of heartbeats are stored, and how often sessions
	// learn that their worker is going where nobody could tell them.
	saveEvery = deadline.SessionCheck
	// saveBatch is how many go into one statement.
	saveBatch = 1000
)

// Beats stores when sessions were last heard of.
type Beats interface {
	// SaveBeats stores them and returns those whose session should not be any more.
	SaveBeats(ctx context.Context, beats []postgres.Beat) (map[postgres.Beat]postgres.Beaten, error)
}

// Manager has the sessions of this replica. Its exported fields are set once; it
// is safe for concurrent use.
type Manager struct {
	App      *app.App
	Sessions *nats.Sessions
	Beats    Beats
	// Heartbeat publishes that an agent lives.
	Heartbeat func(workerID, correlationID string, h worker.Heartbeat) error
	// Replica names this process among its sisters.
	Replica string
	Now     func() time.Time
	Log     *slog.Logger

	mu   sync.Mutex // guards live
	live map[string]*session
}

func (m *Manager) add(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live == nil {
		m.live = map[string]*session{}
	}
	m.live[s.at.WorkerID] = s
}

func (m *Manager) remove(s *session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[s.at.WorkerID] == s {
		delete(m.live, s.at.WorkerID)
	}
}

// Count is how many sessions there are on this replica.
func (m *Manager) Count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.live)
}

// Holds tells whether a session of this replica knows that its worker has the
// attempt. false says nothing: the session may be on another replica.
func (m *Manager) Holds(workerID, jobID string, attempt int) bool {
	m.mu.Lock()
	s := m.live[workerID]
	m.mu.Unlock()
	if s == nil {
		return false
	}
	h := s.holds.Load()
	return h != nil && h.JobID == jobID && h.Attempt == attempt
}

// Run stores when sessions were last heard of, now and then and at the end, and
// ends those that a lost message left behind.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.save(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			m.save(last)
			return nil
		}
	}
}

func (m *Manager) save(ctx context.Context) {
	var beats []postgres.Beat
	sessions := map[postgres.Beat]*session{}
	m.mu.Lock()
	for _, s := range m.live {
		b := postgres.Beat{WorkerID: s.at.WorkerID, Epoch: s.at.Epoch, At: time.Unix(0, s.lastBeat.Load()).UTC()}
		beats, sessions[b] = append(beats, b), s
	}
	m.mu.Unlock()
	for len(beats) > 0 {
		n := min(len(beats), saveBatch)
		odd, err := m.Beats.SaveBeats(ctx, beats[:n])
		if err != nil {
			m.Log.WarnContext(ctx, "cannot store the times of heartbeats; trying again later", "error", err, "every", saveEvery)
			return
		}
		for b, what := range odd {
			if what.Superseded {
				sessions[b].fail(errSuperseded)
			} else if what.Going {
				sessions[b].nudge("the worker's life is over")
			}
		}
		beats = beats[n:]
	}
}

// nudge has the session tell its agent to end.
func (s *session) nudge(reason string) {
	select {
	case s.nudged <- reason:
	default:
	}
}
