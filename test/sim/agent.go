package sim

import (
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"

	"hodei.dev/services/registry/core"
)

const (
	reconnectFirst = 100 * time.Millisecond
	reconnectMost  = 2 * time.Second
	agentSilence   = 10 * time.Second
	leavePatience  = 10 * time.Second
)

// agent mirrors the contract of agent/internal/session: it accepts, waits for START,
// runs, reports until that is acknowledged, kills its job by itself when its lease
// runs out, and leaves nothing running when it says goodbye.
type agent struct {
	*process
	w      *world
	worker string
	token  string
	place  *resource

	stream      *agentStream
	connections int64 // so far
	welcomed    bool
	heard       time.Time
	backoff     time.Duration
	seq         int
	beats       map[int]time.Time
	lease       time.Time // zero: none is held
	refused     time.Time // since when registry does not know it

	cur      *attempt
	ending   int
	waiting  *message
	seen     map[key]fate
	stopping string
	leaveBy  time.Time
}

type key struct {
	job     string
	attempt int
}

type fate struct {
	over   bool
	reason string
}

// attempt is one attempt of a job at its agent.
type attempt struct {
	key
	started    bool
	command    *jobProcess
	cause      job.Category
	unreported bool
	dropped    bool
	ended      bool
	result     *core.Report
}

// boot starts an agent in a resource: it registers, then connects.
func (m *machine) boot(r *resource, token string) {
	a := &agent{
		process: m.w.process("agent of " + short(r.worker)), w: m.w, worker: r.worker, token: token, place: r,
		backoff: reconnectFirst, beats: map[int]time.Time{}, seen: map[key]fate{},
	}
	r.agent = a
	a.start(func(t *task) {
		nonce := "nonce"
		for pause := reconnectFirst; ; pause = min(2*pause, reconnectMost) {
			t.sleep(a.w.net.latency())
			if reg := a.w.door(); reg != nil && !a.w.chaos.cut(a.worker) {
				answer := &box[string]{}
				reg.start(func(rt *task) {
					refused, err := reg.enrol(rt, a.worker, a.token, nonce)
					switch {
					case refused:
						answer.put("refused")
					case err == nil:
						answer.put("welcome")
					}
				})
				if got, _ := wait(t, answer, 5*time.Second); got == "refused" {
					a.exit()
				} else if got == "welcome" {
					break
				}
			}
			t.sleep(t.between(pause/2, pause))
		}
		a.connect()
	})
}

// exit ends the agent's process; what it ran stays behind.
func (a *agent) exit() {
	if a.dead {
		return
	}
	stream := a.stream
	a.stream = nil
	a.kill()
	if stream != nil {
		stream.closeByAgent()
	}
	a.w.machine.exited(a.place)
	panic(killed{})
}

// act runs do as one step of the agent, which may end it.
func (a *agent) act(do func()) {
	defer func() {
		if r := recover(); r != nil && r != (killed{}) {
			panic(r)
		}
	}()
	if !a.lease.IsZero() && !a.now.Before(a.lease) {
		a.expire()
	}
	do()
	a.leave()
}

func (a *agent) at(d time.Duration, do func()) { a.later(d, func() { a.act(do) }) }

func (a *agent) connect() {
	if a.stream != nil {
		return
	}
	reg := a.w.door()
	if reg == nil || a.w.chaos.cut(a.worker) {
		a.again()
		return
	}
	if _, known := a.w.credentials.epoch[a.worker]; !known {
		if a.refused.IsZero() {
			a.refused = a.now
		}
		if a.now.Sub(a.refused) > deadline.Lease && !a.running() {
			a.exit()
		}
		a.again()
		return
	}
	a.connections++
	s, connection := &agentStream{w: a.w, agent: a, door: reg}, a.connections
	a.stream, a.welcomed, a.heard, a.refused = s, false, a.now, time.Time{}
	held := core.Held{}
	if c := a.cur; c != nil {
		held = core.Held{JobID: c.job, Attempt: c.attempt, Started: c.started || c.result != nil}
	}
	s.up = a.w.now.Add(a.w.chaos.holdsUp())
	a.w.after(s.when(&s.up), func() {
		if reg.dead || s.closed {
			s.closeByRegistry()
			return
		}
		reg.ifAlive(func() { reg.serve(s, a.worker, connection, held) })
	})
	a.watch(s)
}

func (a *agent) again() {
	a.at(a.between(a.backoff/2, a.backoff), a.connect)
	a.backoff = min(2*a.backoff, reconnectMost)
}

// watch cuts a stream from which nothing comes, and beats on it.
func (a *agent) watch(s *agentStream) {
	a.at(a.heard.Add(agentSilence).Sub(a.now)+time.Millisecond, func() {
		if a.stream != s {
			return
		}
		if a.now.Sub(a.heard) > agentSilence {
			a.cut()
			return
		}
		a.watch(s)
	})
}

func (a *agent) beat(s *agentStream) {
	if a.stream != s {
		return
	}
	a.seq++
	a.beats[a.seq] = a.now
	s.toRegistry(message{kind: "heartbeat", seq: a.seq})
	a.at(deadline.HeartbeatInterval, func() { a.beat(s) })
}

// lost takes note that a stream is no more.
func (a *agent) lost(s *agentStream) {
	if a.stream != s {
		return
	}
	a.act(func() {
		if a.welcomed {
			a.backoff = reconnectFirst
		}
		a.stream, a.welcomed, a.waiting = nil, false, nil
		a.again()
	})
}

func (a *agent) cut() {
	if s := a.stream; s != nil {
		s.closeByAgent()
		a.stream, a.welcomed, a.waiting = nil, false, nil
		a.again()
	}
}

func (a *agent) renew(sent time.Time) {
	a.lease = sent.Add(deadline.Lease)
	a.at(a.lease.Sub(a.now), func() {})
}

// hears takes a message of registry.
func (a *agent) hears(s *agentStream, m message) {
	if a.stream == s {
		a.act(func() { a.told(s, m) })
	}
}

func (a *agent) told(s *agentStream, m message) {
	if a.stream != s {
		return
	}
	a.heard = a.now
	k := key{m.job, m.attempt}
	switch m.kind {
	case "welcome":
		if a.welcomed = true; !m.going {
			a.renew(a.now)
		}
		a.beat(s)
		if a.stopping != "" {
			s.toRegistry(message{kind: "stopping", reason: a.stopping})
		}
		if c := a.cur; c != nil && c.result != nil {
			a.report(c)
		}
	case "beat":
		if sent, ok := a.beats[m.seq]; ok {
			delete(a.beats, m.seq)
			a.renew(sent)
		}
	case "run":
		a.run(m)
	case "start":
		a.begin(k)
	case "drop":
		a.drop(k, m.reason)
	case "cancel":
		a.cancel(k, m.reason)
	case "ack":
		if c := a.cur; c != nil && c.key == k && c.result != nil {
			a.release(c)
		}
	case "terminate":
		a.terminate()
	}
}
