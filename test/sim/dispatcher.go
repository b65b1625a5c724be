package sim

import (
	"cmp"
	"slices"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/dispatcher/core"
)

const (
	inFlight        = 32
	handOverTimeout = 5 * time.Second
	handOverGrace   = 8 * time.Second
	firstResend     = 250 * time.Millisecond
	lastResend      = 2 * time.Second
	lastChanceWait  = time.Second
	lastChancePing  = 2 * time.Second
)

// dispatcher mirrors services/dispatcher/internal/app: it feeds the core's State, has
// it decide, appends the plans and hands over.
type dispatcher struct {
	*process
	w        *world
	state    *core.State
	causes   map[string]event.Event
	inFlight int
	running  map[string]*handing // hand-overs that run, by job
	handed   map[string]int      // attempts whose hand-over has ended, by job
	kicked   bool
}

func (w *world) dispatch(p *process) {
	d := &dispatcher{process: p, w: w, state: core.New(), causes: map[string]event.Event{}, running: map[string]*handing{}, handed: map[string]int{}}
	p.start(func(t *task) {
		for w.log.read(t) != nil {
			t.sleep(100 * time.Millisecond)
		}
		d.activate()
		w.log.follow(p, int64(len(w.log.events)), d.observe, nil)
		d.kick(0)
	})
}

// activate takes in all that lives, as of one position.
func (d *dispatcher) activate() {
	for _, s := range d.w.log.order {
		if s.typ == catalogue.Circuit && !s.circuit.State.Settled() {
			d.state.ObserveCircuit(s.circuit) // before the workers, some of which are probes
		}
	}
	for _, s := range d.w.log.order {
		switch {
		case s.typ == catalogue.Provider:
			d.state.ObserveProvider(s.provider)
		case s.typ == catalogue.Worker && !s.terminal:
			d.state.ObserveWorker(s.worker)
		}
	}
	for _, s := range d.w.log.order {
		if s.typ == catalogue.Job && !s.terminal {
			d.state.ObserveJob(s.job)
			d.causes[s.id] = s.last
		}
	}
	assigned := d.state.Assigned()
	slices.SortFunc(assigned, func(a, b job.Job) int { return cmp.Compare(a.ID, b.ID) })
	for _, j := range assigned {
		d.handOverDue(j.ID)
	}
}

func (d *dispatcher) observe(_ *task, f fact) error {
	d.apply(f)
	d.tellHandOver(f)
	d.kick(0)
	return nil
}

func (d *dispatcher) apply(f fact) {
	id := f.Stream.ID
	switch own := f.says.(type) {
	case job.Event:
		before := d.state.JobVersion(id)
		d.state.ApplyJob(id, own, job.At{Version: f.StreamVersion, Time: f.Time})
		if d.state.JobVersion(id) != before {
			d.causes[id] = f.Event
		}
	case worker.Event:
		d.state.ApplyWorker(id, own, worker.At{Version: f.StreamVersion, Time: f.Time})
	case provider.Event:
		d.state.ApplyProvider(id, own, provider.At{Version: f.StreamVersion, Time: f.Time})
	case circuit.Event:
		d.state.ApplyCircuit(own, circuit.At{Version: f.StreamVersion, Time: f.Time})
	}
}

// kick has it look what there is to do.
func (d *dispatcher) kick(in time.Duration) {
	if in > 0 {
		d.later(in, func() { d.kick(0) })
		return
	}
	if !d.kicked {
		d.kicked = true
		d.later(0, d.decide)
	}
}

func (d *dispatcher) decide() {
	d.kicked = false
	now := d.clock()
	d.takeSteps()
	free := inFlight - d.inFlight
	if free <= 0 {
		return
	}
	for _, decision := range d.state.Decide(now, free) {
		d.begin(now, decision)
	}
	if due, ok := d.state.NextWake(); ok {
		d.kick(max(due.Sub(now), time.Millisecond))
	}
}

// planned is a plan with its append.
type decided struct {
	core.Plan
	append  store.Append
	handing *handing
}

func (d *dispatcher) begin(now time.Time, decision core.Decision) {
	d.inFlight++
	workerID := ""
	if _, makes := decision.(core.Schedule); makes {
		workerID = d.w.log.newUUID()
	}
	plan, err := d.state.Plan(decision, workerID, now, d.rng.Float64())
	p := decided{Plan: plan}
	if err == nil {
		meta := d.causes[p.Job.ID].CausedBy(catalogue.Dispatcher)
		jobChange(&p.append, p.Job, meta, p.About)
		workerChange(&p.append, p.Worker, meta, p.Beside)
		d.w.log.sign(p.append)
		if p.HandOver {
			p.handing = &handing{attempt: p.Job.Attempt + 1}
			d.running[p.Job.ID] = p.handing
		}
	}
	d.start(func(t *task) {
		switch {
		case err != nil:
			d.settleAnew(t, p, time.Second)
		case p.HandOver && !d.worthTheLast(t, p):
			d.settleAnew(t, p, lastChanceWait)
		default:
			d.execute(t, p)
		}
	})
}

// worthTheLast asks the session first where the job cannot lose another attempt.
func (d *dispatcher) worthTheLast(t *task, p decided) bool {
	if !core.LastChance(p.Job) {
		return true
	}
	a := d.w.net.ping(t, p.Worker.ID, p.Worker.Epoch, lastChancePing)
	if a.refusal != "" {
		d.evidence(p.Worker.ID, p.Worker.Replica, a)
		d.kick(0)
	}
	return a.refusal == ""
}

func (d *dispatcher) execute(t *task, p decided) {
	if len(p.append.Changes) == 0 {
		d.settle(p.Job.ID, time.Time{})
		return
	}
	facts, err := d.persist(t, p.append)
	if err != nil {
		d.settleAnew(t, p, 0)
		return
	}
	for _, f := range facts {
		d.apply(f)
	}
	d.settle(p.Job.ID, time.Time{})
	if p.HandOver {
		for _, f := range facts {
			switch own := f.says.(type) {
			case job.Event:
				p.Job = p.Job.Evolve(own, job.At{Version: f.StreamVersion, Time: f.Time})
			case worker.Event:
				p.Worker = p.Worker.Evolve(own, worker.At{Version: f.StreamVersion, Time: f.Time})
			}
		}
		d.handOver(t, p, facts[0].Event)
	}
}

// persist repeats the same append while the log is away.
func (d *dispatcher) persist(t *task, a store.Append) ([]fact, error) {
	for n := 0; ; n++ {
		facts, err := d.w.log.append(t, a)
		if !isAway(err) {
			return facts, err
		}
		t.sleep(d.between(100*time.Millisecond, time.Second))
	}
}

// known is what the log says of a plan's job and worker, read again.
type known struct {
	job     job.Job
	workers []worker.Worker
	cause   event.Event
}

func (d *dispatcher) reload(t *task, jobID, workerID string) known {
	for d.w.log.read(t) != nil {
		t.sleep(d.between(100*time.Millisecond, time.Second))
	}
	s := d.w.log.get(jobID)
	k := known{job: s.job, cause: s.last}
	for _, id := range []string{workerID, s.job.WorkerID} {
		if w := d.w.log.get(id); w.version > 0 && (id == workerID || s.job.State == job.StateScheduled) {
			k.workers = append(k.workers, w.worker)
		}
	}
	return k
}

func (d *dispatcher) take(k known) {
	for _, w := range k.workers {
		d.state.ObserveWorker(w)
	}
	d.state.ObserveJob(k.job)
	d.causes[k.job.ID] = k.cause
}

func (d *dispatcher) settleAnew(t *task, p decided, hold time.Duration) {
	d.take(d.reload(t, p.Job.ID, p.Worker.ID))
	if p.handing != nil && d.running[p.Job.ID] == p.handing {
		delete(d.running, p.Job.ID)
	}
	var until time.Time
	if hold > 0 {
		until = d.clock().Add(hold)
	}
	d.settle(p.Job.ID, until)
	d.handOverDue(p.Job.ID)
}

func (d *dispatcher) settle(jobID string, until time.Time) {
	d.inFlight--
	d.state.Settle(jobID, until)
	d.kick(0)
}
