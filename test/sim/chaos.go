package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/catalogue"
)

// Fault is one thing that goes wrong. A plan is a list of them.
type Fault struct {
	At   time.Duration
	Kind string
	// Who is the service that it happens to, where there is one.
	Who string
	// For is how long it lasts.
	For time.Duration
	// N counts: the point at which a service crashes, the agent that is hit.
	N int
}

// String is one line of a story.
func (f Fault) String() string {
	return fmt.Sprintf("%s %s for %s (%d)", f.Kind, f.Who, f.For.Round(time.Millisecond), f.N)
}

// The kinds of faults.
const (
	crash         = "crash"
	crashAtPoint  = "crash at a point"
	pauseService  = "pause"
	skewClock     = "clock jump"
	twoActive     = "two dispatchers"
	logAway       = "event log away"
	offTheBus     = "off the bus"
	slowDelivery  = "slow delivery"
	rewound       = "redelivery"
	lostCommand   = "lost commands"
	lostReply     = "lost replies"
	twiceCommand  = "doubled commands"
	lateCommand   = "late commands"
	lateStream    = "late streams"
	lateHello     = "late Hellos"
	lostAnswer    = "lost answers of the log"
	lostHeartbeat = "lost heartbeats"
	cutAgent      = "agent cut off"
	stuckAgent    = "agent's stream stuck"
	killAgent     = "agent killed"
	pauseAgent    = "agent paused"
	loseResource  = "resource lost"
	illProvider   = "ill provider"
	slowProvider  = "slow provider"
	failProvider  = "failing provider"
	strayResource = "stray resource"
)

// restarts are the faults after which nothing may have to wait for a deadline.
var restarts = []string{crash, crashAtPoint, rewound, twoActive}

var anything = []string{
	crash, crash, crashAtPoint, crashAtPoint, crashAtPoint, pauseService, skewClock, twoActive, logAway, offTheBus, offTheBus, slowDelivery, rewound,
	lostCommand, lostReply, twiceCommand, lateCommand, lateCommand, lateStream, lateStream, lateHello, lateHello, lostAnswer, lostHeartbeat, cutAgent, cutAgent, stuckAgent, killAgent, killAgent, pauseAgent, pauseAgent,
	loseResource, illProvider, slowProvider, failProvider, strayResource,
}

// faultTime is how long things go wrong.
const faultTime = 2 * time.Minute

// registryToo is registry's second replica: both have sessions, one reacts to events.
const registryToo = catalogue.Registry + " 2"

var services = []string{catalogue.Dispatcher, catalogue.Registry, registryToo, catalogue.Provisioner, catalogue.TimeoutMonitor}

// planOf makes the faults of a seed.
func planOf(rng *rand.Rand, kinds []string) []Fault {
	var plan []Fault
	span := faultTime // spread, or one upon the other
	if rng.IntN(2) == 0 {
		span = 20 * time.Second
	}
	for range 1 + rng.IntN(14) {
		f := Fault{
			At: time.Duration(rng.Int64N(int64(span))), Kind: kinds[rng.IntN(len(kinds))],
			Who: services[rng.IntN(len(services))], N: rng.IntN(20), For: time.Duration(rng.Int64N(int64(20 * time.Second))),
		}
		switch f.Kind {
		case crash, crashAtPoint:
			f.For /= 5 // up to 4 s
		case pauseAgent, cutAgent, stuckAgent:
			f.For *= 8
		}
		plan = append(plan, f)
	}
	slices.SortStableFunc(plan, func(a, b Fault) int { return int(a.At - b.At) })
	return plan
}

// chaos makes a plan come true.
type chaos struct {
	w      *world
	until  map[string]time.Time // windows, by kind
	points map[string][]Fault   // crashes at points, by service
	cuts   map[string]time.Time // agents that reach nobody, by worker
	rng    *rand.Rand
}

func newChaos(w *world, plan []Fault, seed uint64) *chaos {
	c := &chaos{w: w, until: map[string]time.Time{}, points: map[string][]Fault{}, cuts: map[string]time.Time{}, rng: rand.New(rand.NewPCG(seed, 3))}
	for _, f := range plan {
		w.after(f.At, func() {
			w.tell("", f.String())
			c.inject(f)
		})
	}
	return c
}

func (c *chaos) inject(f Fault) {
	w := c.w
	switch f.Kind {
	case crash:
		w.crash(f.Who, f.For)
	case crashAtPoint:
		c.points[f.Who] = append(c.points[f.Who], f)
		w.after(faultTime-f.At, func() { c.points[f.Who] = nil })
	case pauseService:
		w.running[f.Who].pause(f.For)
		w.disturb(f.For)
	case skewClock:
		p := w.running[f.Who]
		p.skew = f.For/4 - 2*time.Second
	case twoActive:
		old := w.running[catalogue.Dispatcher]
		w.launch(catalogue.Dispatcher)
		w.after(f.For, old.kill)
	case logAway:
		w.log.away = w.now.Add(f.For / 2)
		w.disturb(f.For / 2)
	case offTheBus:
		if p := w.running[f.Who]; strings.HasPrefix(f.Who, catalogue.Registry) {
			p.offBus, p.silent = w.now.Add(f.For), f.N%2 == 0
		}
	case rewound:
		for _, feed := range w.log.feeds {
			if !feed.dead && feed.name == f.Who {
				feed.rewind(int64(f.N))
			}
		}
	case cutAgent, stuckAgent, killAgent, pauseAgent, loseResource:
		c.hit(f)
	case strayResource:
		c.stray()
	default:
		if until := w.now.Add(f.For); until.After(c.until[f.Kind]) {
			c.until[f.Kind] = until
		}
	}
}

// hit does something to one of the agents.
func (c *chaos) hit(f Fault) {
	var live []*resource
	for _, r := range c.w.machine.order {
		if !r.gone && !r.agent.dead {
			live = append(live, r)
		}
	}
	if busy := slices.DeleteFunc(slices.Clone(live), func(r *resource) bool { return r.agent.cur == nil }); len(busy) > 0 {
		live = busy
	}
	if len(live) == 0 || c.w.elsewhere && f.Kind == pauseAgent {
		return // where the lease is the fence, an agent that hangs cannot be fenced: nobody claims that
	}
	r := live[f.N%len(live)]
	c.w.tell(r.worker, f.Kind)
	switch f.Kind {
	case cutAgent:
		c.cuts[r.worker] = c.w.now.Add(f.For)
		if s := r.agent.stream; s != nil {
			s.stuck = c.w.now.Add(f.For)
		}
	case stuckAgent:
		if s := r.agent.stream; s != nil {
			s.stuck = c.w.now.Add(f.For)
		}
	case killAgent:
		if c.w.elsewhere { // a container: what is in it ends with it
			c.w.machine.end(r)
			return
		}
		stream := r.agent.stream
		r.agent.kill()
		if stream != nil {
			stream.closeByAgent()
		}
		c.w.machine.exited(r)
	case pauseAgent:
		r.agent.pause(f.For)
	case loseResource:
		c.w.machine.end(r)
	}
}

// stray leaves a resource that no worker has.
func (c *chaos) stray() {
	id := c.w.log.newUUID()
	r := &resource{worker: id}
	c.w.machine.resources[id] = r
	c.w.machine.order = append(c.w.machine.order, r)
	c.w.machine.boot(r, "stray")
}

func (c *chaos) during(kind string) bool { return c.until[kind].After(c.w.now) }

// loses tells whether something is lost, or doubled, now.
func (c *chaos) loses(kind string) bool { return c.during(kind) && c.rng.Float64() < 0.4 }

func (c *chaos) late() time.Duration {
	if c.during(lateCommand) && c.rng.Float64() < 0.6 {
		return time.Duration(c.rng.Int64N(int64(8 * time.Second)))
	}
	return 0
}

// dawdles is how much longer a message of an agent's stream takes.
func (c *chaos) dawdles() time.Duration {
	if c.during(lateStream) && c.rng.Float64() < 0.3 {
		return time.Duration(c.rng.Int64N(int64(8 * time.Second)))
	}
	return 0
}

// holdsUp is how long the first word of an agent's stream is on its way: the agent may
// have given it up, and be heard on another one, when it arrives.
func (c *chaos) holdsUp() time.Duration {
	if c.during(lateHello) && c.rng.Float64() < 0.5 {
		return time.Duration(c.rng.Int64N(int64(3 * agentSilence)))
	}
	return 0
}

func (c *chaos) delivery() time.Duration {
	if c.during(slowDelivery) {
		return time.Duration(c.rng.Int64N(int64(2 * time.Second)))
	}
	return c.w.between(200*time.Microsecond, 5*time.Millisecond)
}

func (c *chaos) ill() bool { return c.during(illProvider) && c.rng.Float64() < 0.7 }

func (c *chaos) slowness() time.Duration {
	if c.during(slowProvider) {
		return time.Duration(c.rng.Int64N(int64(90 * time.Second)))
	}
	return 0
}

func (c *chaos) cut(worker string) bool { return c.cuts[worker].After(c.w.now) }

// point is a place where a service may crash: the n-th of them that it comes to.
func (c *chaos) point(p *process, where string) {
	pending := c.points[p.name]
	for i := range pending {
		if pending[i].N--; pending[i].N < 0 {
			f := pending[i]
			c.points[p.name] = slices.Delete(pending, i, i+1)
			c.w.tell("", p.name+" crashes "+where)
			c.w.crash(p.name, f.For)
			panic(killed{})
		}
	}
}
