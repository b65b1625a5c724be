package sim

import (
	"cmp"
	"slices"
	"time"

	"hodei.dev/services/registry/core"
)

// network is request-reply between services and the streams of agents: lossy, late,
// and now and then twice.
type network struct {
	w *world
	// sessions are who listens, by worker and epoch.
	sessions map[address]*session
}

type address struct {
	worker string
	epoch  int64
}

// run is the command to take an attempt.
type run struct {
	job           string
	attempt       int
	workerVersion int
}

// command is what a session is told; reply may be nil.
type command struct {
	kind   string // run, cancel, terminate, ping, supersede
	run    run
	reason string
	// said is what the agent says, where kind is "said".
	said  message
	reply func(answer)
}

// answer is what came of a command.
type answer struct {
	// refusal is why it was not done; "" = it was.
	refusal string
	// gone: it has not reached the agent, because its session is over or is nowhere.
	gone bool
	// heard: a session has answered, whatever it said.
	heard bool
}

// inVain is the refusal of a session that does not answer at all.
const inVain = "the worker's session did not answer in time"

func refuse(why string) answer { return answer{refusal: why} }

func (n *network) latency() time.Duration {
	return n.w.between(100*time.Microsecond, 3*time.Millisecond)
}

// run asks a session to take an attempt: whether its agent has accepted.
func (n *network) run(t *task, workerID string, epoch int64, r run, within time.Duration) answer {
	return n.ask(t, address{workerID, epoch}, command{kind: "run", run: r}, within)
}

// ping asks whether the agent was heard of lately.
func (n *network) ping(t *task, workerID string, epoch int64, within time.Duration) answer {
	return n.ask(t, address{workerID, epoch}, command{kind: "ping"}, within)
}

func (n *network) ask(t *task, to address, c command, within time.Duration) answer {
	came := &box[answer]{}
	c.reply = func(a answer) {
		if s := n.listener(to); n.w.chaos.loses(lostReply) || s != nil && s.cutOff() {
			return
		}
		a.heard = true
		n.w.after(n.latency()+n.w.chaos.late(), func() { came.put(a) })
	}
	copies := 1
	switch {
	case n.w.chaos.loses(lostCommand):
		copies = 0
	case n.w.chaos.loses(twiceCommand):
		copies = 2
	}
	for range copies {
		n.w.after(n.latency()+n.w.chaos.late(), func() {
			switch s := n.listener(to); {
			case s != nil && !s.cutOff():
				s.in.put(c)
			case s == nil || !s.silent:
				n.w.after(n.latency(), func() { came.put(answer{refusal: "no registry holds the worker's session", gone: true}) })
			}
		})
	}
	a, ok := wait(t, came, within)
	if !ok {
		return refuse(inVain)
	}
	return a
}

// tell sends a command and waits for nothing.
func (n *network) tell(to address, c command) {
	if n.w.chaos.loses(lostCommand) {
		return
	}
	c.reply = func(answer) {}
	n.w.after(n.latency()+n.w.chaos.late(), func() {
		if s := n.listener(to); s != nil && !s.cutOff() {
			s.in.put(c)
		}
	})
}

// held are the live sessions of a registry, in order.
func (n *network) held(r *registry) []*session {
	var out []*session
	for _, s := range n.sessions {
		if s.registry == r && !s.over {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *session) int {
		return cmp.Or(cmp.Compare(a.worker.ID, b.worker.ID), cmp.Compare(a.epoch, b.epoch))
	})
	return out
}

func (n *network) listener(to address) *session {
	s := n.sessions[to]
	if s == nil || s.dead || s.over {
		return nil
	}
	return s
}

// stream is the connection of an agent with registry: in order, both ways, until
// either end closes it. While it is stuck nothing passes, and both ends believe that
// all is well.
type agentStream struct {
	w       *world
	agent   *agent
	door    *registry
	session *session
	stuck   time.Time
	// up and down are when the last message on each way arrives.
	up, down time.Time
	closed   bool
}

// message is what an agent and registry say to each other.
type message struct {
	kind    string // hello, heartbeat, accepted, refused, result, stopping; welcome, run, start, drop, cancel, ack, beat, terminate
	job     string
	attempt int
	seq     int
	report  core.Report
	reason  string
	going   bool // welcome: the worker's life is over
}

func (c *agentStream) when(last *time.Time) time.Duration {
	at := c.w.now.Add(c.w.net.latency() + c.w.chaos.dawdles())
	if c.stuck.After(at) {
		at = c.stuck
	}
	if last.After(at) {
		at = *last
	}
	*last = at
	return at.Sub(c.w.now)
}

// toRegistry and toAgent carry a message.
func (c *agentStream) toRegistry(m message) {
	c.w.after(c.when(&c.up), func() {
		if s := c.session; !c.closed && s != nil && !s.dead {
			s.ifAlive(func() { s.hears(m) })
		}
	})
}

func (c *agentStream) toAgent(m message) {
	c.w.after(c.when(&c.down), func() {
		if !c.closed {
			c.agent.ifAlive(func() { c.agent.hears(c, m) })
		}
	})
}

// closeByAgent and closeByRegistry end the stream; the other end hears of it later.
func (c *agentStream) closeByAgent() {
	c.w.after(c.when(&c.up), func() {
		c.closed = true
		if s := c.session; s != nil && !s.dead {
			s.in.put(command{kind: "broken"})
		}
	})
}

func (c *agentStream) closeByRegistry() {
	c.w.after(c.when(&c.down), func() {
		c.closed = true
		c.agent.ifAlive(func() { c.agent.lost(c) })
	})
}
