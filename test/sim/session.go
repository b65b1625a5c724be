package sim

import (
	"errors"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/registry/core"
)

const (
	acceptTimeout = 10 * time.Second
	leaveTimeout  = deadline.KillGrace + 5*time.Second
)

// session is one agent's stream at registry: what the agent says and what it is told,
// one after the other, with the memory that the real one has of its worker and job.
type session struct {
	*process
	registry *registry
	w        *world
	stream   *agentStream
	epoch    int64
	in       queue[command]
	worker   worker.Worker
	job      job.Job

	handOver  *command
	late      int // counts hand-overs: the timer of an earlier one means nothing
	lastBeat  time.Time
	published time.Time
	beating   bool
	stopping  bool
	goodbye   bool
	leaving   bool
	over      bool
}

// What ends a session: its stream has ended, or a newer one is there.
var (
	errLeft       = errors.New("the agent left")
	errSuperseded = errors.New("the agent has a newer session")
	errStale      = errors.New("the agent has given this connection up")
)

// serve runs a session until its stream ends.
func (r *registry) serve(stream *agentStream, workerID string, connection int64, held core.Held) {
	s := &session{process: r.process, registry: r, w: r.w, stream: stream, lastBeat: r.clock()}
	s.worker.ID = workerID
	stream.session = s
	if stream.closed { // before registry came to it
		s.in.put(command{kind: "broken"})
	}
	r.start(func(t *task) {
		err := s.open(t, connection, held)
		for err == nil {
			c, _ := take(t, &s.in, 0)
			err = s.does(t, c)
		}
		s.end(t, err)
	})
}

func (s *session) open(t *task, connection int64, held core.Held) error {
	if err := s.w.log.read(t); err != nil {
		return err
	}
	epoch, ok := s.w.credentials.epoch[s.worker.ID]
	if !ok {
		return errLeft
	}
	if connection <= s.w.credentials.connection[s.worker.ID] && !s.w.broken.numbersByArrival {
		return errStale
	}
	if s.cutOff() {
		return errAway // nobody could reach the session
	}
	s.epoch = epoch + 1
	s.w.credentials.epoch[s.worker.ID], s.w.credentials.connection[s.worker.ID] = s.epoch, connection
	s.w.net.sessions[address{s.worker.ID, s.epoch}] = s
	if epoch > 0 {
		s.w.net.tell(address{s.worker.ID, epoch}, command{kind: "supersede"})
	}
	if err := s.attach(t); err != nil {
		return err
	}
	s.lastBeat, s.beating = s.clock(), !s.going()
	s.stream.toAgent(message{kind: "welcome", going: s.going()})
	if err := s.reconcile(t, held); err != nil {
		return err
	}
	s.leaveIfGoing()
	return nil
}

func (s *session) attach(t *task) error {
	for range rounds {
		if err := s.load(t, ""); err != nil {
			return err
		}
		if s.worker.Epoch > s.epoch {
			return errSuperseded
		}
		if s.going() || s.worker.Epoch == s.epoch {
			return nil
		}
		facts, err := core.Attach(s.worker, s.epoch, s.registry.replica)
		if err != nil {
			return err
		}
		if err := s.record(t, nil, facts); !isConflict(err) {
			return err
		}
	}
	return errAway
}

// load reads the worker, and the job where one is named, again.
func (s *session) load(t *task, jobID string) error {
	if err := s.w.log.read(t); err != nil {
		return err
	}
	s.worker, s.job = s.w.log.get(s.worker.ID).worker, job.Job{}
	if jobID != "" {
		s.job = s.w.log.get(jobID).job
	}
	return nil
}

// record appends facts of the session's job and worker and remembers them.
func (s *session) record(t *task, about []job.Event, beside []worker.Event) error {
	var a store.Append
	actor := "worker/" + s.worker.ID
	jobChange(&a, s.job, by(s.w.log.get(s.job.ID), actor), about)
	workerChange(&a, s.worker, by(s.w.log.get(s.worker.ID), actor), beside)
	if len(a.Changes) == 0 {
		return nil
	}
	facts, err := s.w.log.append(t, s.w.log.sign(a))
	if err != nil {
		return err
	}
	for _, f := range facts {
		switch own := f.says.(type) {
		case job.Event:
			s.job = s.job.Evolve(own, job.At{Version: f.StreamVersion, Time: f.Time})
		case worker.Event:
			s.worker = s.worker.Evolve(own, worker.At{Version: f.StreamVersion, Time: f.Time})
		}
	}
	return nil
}

func (s *session) reconcile(t *task, held core.Held) error {
	for range rounds {
		own, theirs := s.w.log.get(s.worker.JobID).job, s.w.log.get(held.JobID).job
		s.job = own
		plan := core.Reconcile(s.worker, own, theirs, held)
		if plan.Lost {
			out, err := core.Finish(own, s.worker, s.worker.Attempt, core.Vanished(own), s.clock(), s.rng.Float64())
			if err == nil {
				err = s.record(t, out.Job, out.Worker)
			}
			if isConflict(err) {
				if err := s.load(t, ""); err != nil {
					return err
				}
				if s.worker.Epoch > s.epoch {
					return errSuperseded
				}
				continue
			}
			if err != nil {
				return err
			}
		}
		switch {
		case plan.Drop && s.w.broken.neverDrops:
		case plan.Drop:
			s.drop(held.JobID, held.Attempt, plan.Reason)
		case plan.Begin:
			if err := s.begin(t, held.JobID, held.Attempt); err != nil {
				return err
			}
		case plan.Start:
			s.stream.toAgent(message{kind: "start", job: held.JobID, attempt: held.Attempt})
		}
		if plan.Cancel && !plan.Begin {
			s.stream.toAgent(message{kind: "cancel", job: held.JobID, attempt: held.Attempt, reason: "cancelled"})
		}
		return nil
	}
	return errAway
}

// hears takes a message of the agent. Heartbeats are answered at once.
func (s *session) hears(m message) {
	if m.kind != "heartbeat" {
		s.in.put(command{kind: "said", said: m})
		return
	}
	if !s.beating || s.over {
		return
	}
	s.lastBeat = s.clock()
	s.stream.toAgent(message{kind: "beat", seq: m.seq})
	if s.now.Sub(s.published) >= time.Second && !s.cutOff() && !s.w.chaos.loses(lostHeartbeat) {
		s.published = s.now
		s.w.telemetry(s.worker.ID)
	}
}

// does handles one message of the agent or one command.
func (s *session) does(t *task, c command) error {
	switch c.kind {
	case "said":
		return s.said(t, c.said)
	case "run":
		return s.handTo(t, c)
	case "cancel":
		if j := s.job; j.ID == c.run.job && j.Attempt == c.run.attempt && j.State == job.StateRunning {
			s.stream.toAgent(message{kind: "cancel", job: c.run.job, attempt: c.run.attempt, reason: c.reason})
		}
		c.reply(answer{})
	case "terminate":
		s.terminate()
		c.reply(answer{})
	case "ping":
		if s.clock().Sub(s.lastBeat) < deadline.Silence {
			c.reply(answer{})
		} else {
			c.reply(refuse("silent"))
		}
	case "supersede":
		return errSuperseded
	case "late":
		if s.handOver != nil && c.run.attempt == s.late {
			s.drop(s.handOver.run.job, s.handOver.run.attempt, "it was not accepted in time")
			s.answer(refuse("the agent did not accept in time"))
		}
	case "left", "broken":
		for len(s.in.items) > 0 { // what the agent said before it left, perhaps a result
			next, _ := take(t, &s.in, 0)
			if next.kind == "said" && (next.said.kind == "result" || next.said.kind == "stopping") {
				if s.said(t, next.said) != nil {
					break
				}
			}
		}
		return errLeft
	}
	return nil
}

func (s *session) said(t *task, m message) error {
	switch m.kind {
	case "accepted":
		s.w.accepted[key{m.job, m.attempt}] = true
		if s.waitsFor(m.job, m.attempt) {
			s.answer(answer{})
		}
		return s.begin(t, m.job, m.attempt)
	case "refused":
		if s.waitsFor(m.job, m.attempt) {
			s.answer(refuse("the agent refused: " + m.reason))
		}
	case "result":
		if s.waitsFor(m.job, m.attempt) {
			s.answer(answer{})
		}
		return s.result(t, m)
	case "goodbye":
		s.goodbye = true
		return s.stop(t, m.reason)
	case "stopping":
		return s.stop(t, m.reason)
	}
	return nil
}

func (s *session) stop(t *task, reason string) error {
	s.stopping = true
	for range rounds {
		facts, err := core.Stopping(s.worker, reason)
		if err != nil {
			return err
		}
		if err := s.record(t, nil, facts); !isConflict(err) {
			s.leaveIfGoing()
			return err
		}
		if err := s.load(t, s.job.ID); err != nil {
			return err
		}
	}
	return errAway
}

func (s *session) drop(jobID string, attempt int, reason string) {
	s.stream.toAgent(message{kind: "drop", job: jobID, attempt: attempt, reason: reason})
}

func (s *session) going() bool { return going(s.worker) }

func (s *session) leaveIfGoing() {
	if s.going() {
		s.terminate()
	}
}

// terminate tells the agent to end, once, and lets its lease run out.
func (s *session) terminate() {
	if s.leaving {
		return
	}
	s.leaving, s.beating = true, false
	s.stream.toAgent(message{kind: "terminate"})
	s.later(leaveTimeout, func() { s.in.put(command{kind: "left"}) })
}

// end answers an open hand-over and notes that the stream has ended.
func (s *session) end(t *task, why error) {
	s.answer(answer{refusal: "the agent's stream has ended", gone: true})
	s.over, s.beating = true, false
	s.stream.closeByRegistry()
	if errors.Is(why, errSuperseded) || errors.Is(why, errStale) {
		return
	}
	for range rounds {
		if s.worker.Epoch != s.epoch || s.worker.State == worker.StateTerminated {
			return
		}
		note := worker.Disconnected{Epoch: s.epoch, Reason: why.Error(), Clean: s.goodbye && errors.Is(why, errLeft)}
		if err := s.record(t, nil, []worker.Event{note}); !isConflict(err) {
			return
		}
		if s.load(t, "") != nil {
			return
		}
	}
}
