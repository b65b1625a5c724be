package sim

import (
	"fmt"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/registry/core"
)

// credentials are registry's tables: they outlive its process.
type credentials struct {
	token map[string]core.Token
	epoch map[string]int64 // of the latest session; there is one where the agent has registered
	// connection is the one that got it, as the agent counts.
	connection map[string]int64
	beat       map[string]time.Time
}

// registry mirrors services/registry/internal/app and /session: one replica of it.
type registry struct {
	*process
	w *world
	// replica names this process, which is not the one before it.
	replica string
}

func (w *world) register(p *process) {
	w.begun++
	r := &registry{process: p, w: w, replica: fmt.Sprintf("%s/%d", p.name, w.begun)}
	w.registries[p.name] = r
	p.start(r.stand)
	p.start(r.save)
}

// door is the replica that an agent, or the provisioner, comes to; nil where none lives.
func (w *world) door() *registry {
	var live []*registry
	for _, name := range []string{catalogue.Registry, registryToo} {
		if r := w.registries[name]; r != nil && !r.dead {
			live = append(live, r)
		}
	}
	if len(live) == 0 {
		return nil
	}
	return live[w.rng.IntN(len(live))]
}

const (
	roleCheck = time.Second
	// roleLost is after how many checks a replica that is stopped has lost its role.
	roleLost = 5
)

// stand has one replica at a time react to events. One that was stopped for long goes on
// for a moment beside the one that has its role now.
func (r *registry) stand(t *task) {
	for away := 0; ; {
		if h := r.w.reacting; h != nil && !h.dead && h.paused.After(r.now) {
			away++
		} else {
			away = 0
		}
		if h := r.w.reacting; h == nil || h.dead || away > roleLost {
			r.w.reacting = r
			f := r.w.log.follow(r.process, r.w.positions[catalogue.Registry], r.react, func(at int64) { r.w.positions[catalogue.Registry] = at })
			for r.w.reacting == r {
				t.sleep(roleCheck)
			}
			f.over, away = true, 0
		}
		t.sleep(roleCheck)
	}
}

// save stores now and then when sessions were last heard of, and ends those that a
// lost message has left behind.
func (r *registry) save(t *task) {
	for {
		t.sleep(deadline.SessionCheck)
		if r.w.log.read(t) != nil || r.w.broken.noSessionCheck {
			continue
		}
		for _, s := range r.w.net.held(r) {
			if epoch := r.w.credentials.epoch[s.worker.ID]; epoch != s.epoch {
				s.in.put(command{kind: "supersede"})
				continue
			}
			r.w.credentials.beat[s.worker.ID] = s.lastBeat
			if going(r.w.log.get(s.worker.ID).worker) {
				s.in.put(command{kind: "terminate", reply: func(answer) {}})
			}
		}
	}
}

// react does what follows from an event of the log.
func (r *registry) react(t *task, f fact) error {
	id := f.Stream.ID
	switch own := f.says.(type) {
	case job.CancelRequested:
		if own.WorkerID != "" && own.State.HasWorker() {
			return r.tell(t, own.WorkerID, command{kind: "cancel", run: run{job: id, attempt: own.Attempt}, reason: own.Reason})
		}
	case worker.Provisioned:
		return r.w.log.decide(t, id, func(s *stream) ([]worker.Event, event.Meta, error) {
			facts, err := core.Made(s.worker)
			return facts, f.CausedBy(catalogue.Registry), err
		})
	case worker.StatusChanged:
		if own.To == worker.StateTerminating {
			return r.tell(t, id, command{kind: "terminate", reason: own.Reason})
		}
	case worker.Lost:
		if r.w.broken.requeuesUnfenced && own.JobID != "" {
			return r.fenced(t, f, own.JobID, own.Attempt)
		}
	case worker.Terminated:
		if own.JobID != "" {
			if err := r.fenced(t, f, own.JobID, own.Attempt); err != nil {
				return err
			}
		}
		delete(r.w.credentials.token, id)
		if own.JobID == "" { // else its agent may come back with a result, and is told to end
			delete(r.w.credentials.epoch, id)
			delete(r.w.credentials.connection, id)
		}
		return r.tell(t, id, command{kind: "terminate", reason: own.Reason})
	case deadline.TimedOut:
		if own.Kind == deadline.KindHeartbeat {
			return r.silent(t, f, own)
		}
	}
	return nil
}

func (r *registry) tell(t *task, workerID string, c command) error {
	if err := r.w.log.read(t); err != nil {
		return err
	}
	if epoch := r.w.log.get(workerID).worker.Epoch; epoch > 0 {
		r.w.net.tell(address{workerID, epoch}, c)
	}
	return nil
}

// fenced ends the attempt of a worker of which nothing is left.
func (r *registry) fenced(t *task, f fact, jobID string, attempt int) error {
	for range rounds {
		if err := r.w.log.read(t); err != nil {
			return err
		}
		j, w := r.w.log.get(jobID), r.w.log.get(f.Stream.ID)
		facts, err := core.Fenced(j.job, w.worker, attempt, r.clock(), r.rng.Float64())
		if err != nil || len(facts) == 0 {
			return err
		}
		var a store.Append
		jobChange(&a, j.job, f.CausedBy(catalogue.Registry), facts)
		if _, err = r.w.log.append(t, r.w.log.sign(a)); !isConflict(err) {
			return err
		}
	}
	return errAway
}

// silent gives a worker up, unless its session has heard of it.
func (r *registry) silent(t *task, f fact, told deadline.TimedOut) error {
	if err := r.w.log.read(t); err != nil {
		return err
	}
	w := r.w.log.get(f.Stream.ID).worker
	if !w.State.Connected() || r.w.net.ping(t, w.ID, w.Epoch, 2*time.Second).refusal == "" {
		return nil
	}
	last := told.LastSeen
	if s := r.w.credentials.beat[w.ID]; s.After(last) {
		last = s
	}
	return r.w.log.decide(t, w.ID, func(s *stream) ([]worker.Event, event.Meta, error) {
		facts, err := core.GiveUp(s.worker, w.Epoch, last, r.clock())
		return facts, f.CausedBy(catalogue.Registry), err
	})
}

// enrol is the RPC Register: it trades a token for a session.
func (r *registry) enrol(t *task, workerID, token, nonce string) (refused bool, err error) {
	if err := r.w.log.read(t); err != nil {
		return false, err
	}
	s, now := r.w.log.get(workerID), r.w.credentials.token[workerID]
	if going(s.worker) {
		return true, nil
	}
	if now.Admit(token, nonce, r.clock()) != nil {
		return true, nil
	}
	first := now.Nonce == ""
	now.Nonce = nonce
	r.w.credentials.token[workerID] = now
	if _, ok := r.w.credentials.epoch[workerID]; !ok {
		r.w.credentials.epoch[workerID] = 0
	}
	return false, r.w.log.decide(t, workerID, func(s *stream) ([]worker.Event, event.Meta, error) {
		if s.fate.Registered && !first {
			return nil, event.Meta{}, nil
		}
		facts, err := core.Registered(s.worker, worker.Registered{AgentVersion: "sim", Hostname: "sim"})
		return facts, by(s, "worker/"+workerID), err
	})
}

// by is the context of what an agent brings about.
func by(s *stream, actor string) event.Meta {
	m := s.last.CausedBy(catalogue.Registry)
	m.Actor, m.CorrelationID = actor, s.created.CorrelationID
	return m
}
