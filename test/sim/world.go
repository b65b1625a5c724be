package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"

	registrycore "hodei.dev/services/registry/core"
	"hodei.dev/services/timeout-monitor/core"
)

// epoch is when every run begins.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is all there is: the log, the services, the network, the machine.
type world struct {
	*loop
	seed    uint64
	chaos   *chaos
	log     *eventLog
	net     *network
	machine *machine
	broken  breakage

	// running are the services' processes, parts what they do.
	running map[string]*process
	parts   map[string]func(*process)
	// registries are the replicas that live, by name.
	registries map[string]*registry
	// reacting is the one that reacts to events; begun counts how many there were.
	reacting *registry
	begun    int
	monitor  *timeoutMonitor

	// What follows is stored: it outlives the services.
	positions   map[string]int64
	rows        map[string]*row
	credentials credentials
	beats       map[string]time.Time // the telemetry stream's last heartbeats

	jobs     map[string]*planOfJob
	jobOrder []*planOfJob
	found    struct{ zombies, ghosts int }
	// elsewhere: the resources are on a machine that the provisioner cannot reach, so the
	// agents' lease is the fence.
	elsewhere bool
	// disturbed is until when the dispatcher could not do its work.
	disturbed time.Time
	// busy are the attempts that an agent did not take because it had another one.
	busy []busy
	// accepted are the attempts that an agent has said that it takes.
	accepted map[key]bool
	timeouts []timeout
	notes    []note
}

// breakage breaks the glue on purpose, to show that the checks find it.
type breakage struct {
	requeuesUnfenced, ignoresRefusals, keepsWorker, startsStale, startsEarly, agentStartsAlone bool
	keepsBusy, outlivesLease, destroysAgentOnly, confirmsFirst, numbersByArrival               bool
	goneRefuses, noSessionCheck, forgetsProbes, neverDrops                                     bool
}

// planOfJob is what a client asks for and what its command will do.
type planOfJob struct {
	id                          string
	seed                        uint64
	n                           int
	at                          time.Duration
	cancel                      time.Duration // 0 = never
	timeout                     time.Duration
	maxAttempts, infrastructure int
	queued                      time.Time
}

// retried are the categories that the job's policy names: all that a command can end in.
func (p *planOfJob) retried() []job.Category {
	if p.maxAttempts == 1 {
		return nil
	}
	return []job.Category{job.CategoryExitCode, job.CategorySignal}
}

type planOfAttempt struct {
	takes   time.Duration
	exit    int
	ignores bool
}

// attempt is what the command does when it is run for the n-th time.
func (p *planOfJob) attempt(n int) planOfAttempt {
	rng := rand.New(rand.NewPCG(p.seed, uint64(p.n*100+n)))
	out := planOfAttempt{takes: time.Duration(rng.Int64N(int64(20 * time.Second)))}
	if rng.IntN(3) == 0 {
		out.takes *= 5
	}
	if rng.IntN(3) == 0 {
		out.takes /= 100
	}
	if rng.IntN(12) == 0 {
		out.takes = 10 * time.Minute // it runs into its timeout
	}
	if rng.IntN(4) == 0 {
		out.exit = 1
	}
	out.ignores = rng.IntN(3) == 0
	return out
}

type timeout struct {
	deadline core.Deadline
	stream   string
	// calm: the dispatcher was there all the time, and no agent was cut off, stopped or
	// killed that had accepted.
	calm bool
}

type busy struct {
	worker       string
	has, offered key
}

// note is a line of the story of what is outside the log.
type note struct {
	at    time.Time
	about string // an aggregate; "" = everybody
	text  string
}

func (w *world) tell(about, text string) { w.notes = append(w.notes, note{w.now, about, text}) }

func (w *world) timeout(d core.Deadline, s *stream) {
	calm := d.Since.After(w.disturbed)
	if w.accepted[key{s.id, s.job.Attempt}] {
		r := w.machine.resources[s.job.WorkerID]
		calm = calm && r != nil && !r.agent.dead && !r.agent.paused.After(d.Since) && !w.chaos.cuts[r.worker].After(d.Since)
	}
	w.timeouts = append(w.timeouts, timeout{d, s.id, calm})
}

// telemetry carries a heartbeat to the monitor.
func (w *world) telemetry(workerID string) {
	w.after(w.net.latency(), func() {
		w.beats[workerID] = w.now
		if m := w.monitor; m != nil {
			m.ifAlive(func() { m.silence.Heard(workerID, m.clock(), w.now) })
		}
	})
}

func newWorld(seed uint64, plan []Fault, broken breakage) *world {
	l := &loop{now: epoch, rng: rand.New(rand.NewPCG(seed, 1))}
	w := &world{
		loop: l, seed: seed, broken: broken, elsewhere: seed%3 == 2, running: map[string]*process{}, registries: map[string]*registry{}, positions: map[string]int64{}, rows: map[string]*row{},
		beats: map[string]time.Time{}, jobs: map[string]*planOfJob{}, accepted: map[key]bool{},
		credentials: credentials{token: map[string]registrycore.Token{}, epoch: map[string]int64{}, connection: map[string]int64{}, beat: map[string]time.Time{}},
	}
	w.log, w.net, w.machine = newLog(w), &network{w: w, sessions: map[address]*session{}}, &machine{w: w, resources: map[string]*resource{}}
	w.chaos = newChaos(w, plan, seed)
	w.parts = map[string]func(*process){
		catalogue.Dispatcher: w.dispatch, catalogue.Registry: w.register, registryToo: w.register, catalogue.Provisioner: w.provision, catalogue.TimeoutMonitor: w.watchClock,
	}
	return w
}

// disturb notes that the dispatcher cannot do its work for a while.
func (w *world) disturb(d time.Duration) {
	if until := w.now.Add(d); until.After(w.disturbed) {
		w.disturbed = until
	}
}

// launch starts a service; crash kills it, and starts it again a while later.
func (w *world) launch(name string) {
	p := w.process(name)
	w.running[name] = p
	if name == catalogue.Dispatcher {
		w.disturb(0)
	}
	w.parts[name](p)
}

func (w *world) crash(name string, down time.Duration) {
	p := w.running[name]
	if p.dead {
		return
	}
	p.kill()
	for _, r := range w.machine.order {
		if a := r.agent; !a.dead && a.stream != nil && a.stream.door.process == p {
			a.stream.closeByRegistry()
		}
	}
	w.after(down, func() { w.launch(name) })
}

// populate registers a provider and plans the work of the run.
func (w *world) populate() {
	rng := rand.New(rand.NewPCG(w.seed, 2))
	spec := provider.Spec{
		Name: "sim", Kind: provider.Process, MaxWorkers: 1 + rng.IntN(4), JobsPerWorker: rng.IntN(3), MinIdle: 0,
		IdleTimeout: unit.Duration(time.Minute), ScheduledTimeout: unit.Duration(2 * time.Minute),
	}
	if rng.IntN(3) == 0 {
		spec.MinIdle = 1
	}
	p := provider.Provider{ID: w.log.newUUID()}
	meta := event.Meta{Source: catalogue.Provisioner, Actor: "service/provisioner", CorrelationID: p.ID}
	must(w.log.commit(w.log.sign(providerChange(p, meta, must(p.Register(spec, provider.Capabilities{}, "sim"))))))
	span := faultTime // all at once, or all the time
	if rng.IntN(2) == 0 {
		span = 10 * time.Second
	}
	for n := range 3 + rng.IntN(14) {
		j := &planOfJob{
			id: w.log.newUUID(), seed: w.seed, n: n, at: time.Duration(rng.Int64N(int64(span))), timeout: time.Duration(30+rng.IntN(90)) * time.Second,
			maxAttempts: 1 + rng.IntN(2), infrastructure: rng.IntN(4),
		}
		if rng.IntN(5) == 0 {
			j.cancel = j.at + time.Duration(rng.Int64N(int64(20*time.Second))) + 1
		}
		w.jobs[j.id] = j
		w.jobOrder = append(w.jobOrder, j)
	}
	for _, name := range services {
		w.launch(name)
	}
	client := w.process("client")
	for _, j := range w.jobOrder {
		client.later(j.at, func() { client.start(func(t *task) { w.queue(t, j) }) })
		if j.cancel > 0 {
			client.later(j.cancel, func() { client.start(func(t *task) { w.cancel(t, j.id) }) })
		}
	}
	if rng.IntN(4) == 0 {
		client.later(time.Duration(rng.Int64N(int64(faultTime))), func() {
			for _, r := range w.machine.order {
				if !r.gone {
					client.start(func(t *task) { w.drain(t, r.worker) })
					return
				}
			}
		})
	}
}

func providerChange(p provider.Provider, meta event.Meta, facts []provider.Event) store.Append {
	return store.Append{Changes: []store.Change{must(aggregate.ProviderChange(p, meta, facts))}}
}

// short is the end of an id, enough for people.
func short(id string) string { return fmt.Sprintf("…%s", id[max(len(id)-4, 0):]) }
