package sim

import (
	"cmp"
	"slices"
	"time"

	"hodei.dev/libs/domain/catalogue"
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
	running  map[string]int // attempts whose hand-over runs, by job
	handed   map[string]int // attempts whose hand-over has ended, by job
	kicked   bool
}

func (w *world) dispatch(p *process) {
	d := &dispatcher{process: p, w: w, state: core.New(), causes: map[string]event.Event{}, running: map[string]int{}, handed: map[string]int{}}
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
	switch f.says.(type) {
	case job.Event:
		d.handOverDue(f.Stream.ID)
	case worker.Event:
		w, _ := d.state.Worker(f.Stream.ID)
		if _, back := f.says.(worker.Reconnected); back && d.running[w.JobID] == 0 {
			delete(d.handed, w.JobID)
		}
		d.handOverDue(w.JobID)
	}
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
	}
}

// handOverDue begins the hand-over of a job that is ASSIGNED and for which this
// dispatcher has not sent RUN.
func (d *dispatcher) handOverDue(jobID string) {
	j, ok := d.state.Job(jobID)
	if !ok || j.State != job.StateAssigned || d.running[jobID] != 0 || d.handed[jobID] == j.Attempt {
		return
	}
	if w, ok := d.state.Worker(j.WorkerID); ok && w.JobID == jobID {
		d.handAgain(j, w)
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
	append store.Append
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
			d.running[p.Job.ID] = p.Job.Attempt + 1
		}
	}
	d.start(func(t *task) {
		switch {
		case err != nil:
			d.settleAnew(t, p, time.Second)
		case p.HandOver && core.LastChance(p.Job) && !d.w.net.alive(t, p.Worker.ID, p.Worker.Epoch, lastChancePing):
			d.settleAnew(t, p, lastChanceWait)
		default:
			d.execute(t, p)
		}
	})
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

// reload takes in what the log says of a plan's job and worker.
func (d *dispatcher) reload(t *task, jobID, workerID string) {
	for d.w.log.read(t) != nil {
		t.sleep(d.between(100*time.Millisecond, time.Second))
	}
	s := d.w.log.get(jobID)
	for _, id := range []string{workerID, s.job.WorkerID} {
		if w := d.w.log.get(id); w.version > 0 && (id == workerID || s.job.State == job.StateScheduled) {
			d.state.ObserveWorker(w.worker)
		}
	}
	d.state.ObserveJob(s.job)
	d.causes[jobID] = s.last
}

func (d *dispatcher) settleAnew(t *task, p decided, hold time.Duration) {
	d.reload(t, p.Job.ID, p.Worker.ID)
	if p.HandOver {
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

func (d *dispatcher) handAgain(j job.Job, w worker.Worker) {
	d.running[j.ID] = j.Attempt
	cause := d.causes[j.ID]
	d.start(func(t *task) { d.handOver(t, decided{Plan: core.Plan{Job: j, Worker: w}}, cause) })
}

// handOver sends RUN; where the session does not accept, the attempt ends.
func (d *dispatcher) handOver(t *task, p decided, cause event.Event) {
	jobID, attempt := p.Job.ID, p.Job.Attempt
	defer func() {
		delete(d.running, jobID)
		d.handed[jobID] = attempt
		d.handOverDue(jobID)
		d.kick(0)
	}()
	for range rounds {
		d.w.chaos.point(d.process, "before RUN")
		refusal := d.w.net.run(t, p.Worker.ID, p.Worker.Epoch, run{job: p.Job.ID, attempt: p.Job.Attempt, workerVersion: p.Worker.Version}, handOverTimeout)
		if refusal == "" || d.w.broken.ignoresRefusals {
			return
		}
		about, beside, err := core.Refused(p.Job, p.Worker, refusal, d.clock(), d.rng.Float64())
		if err != nil {
			return
		}
		var a store.Append
		meta := cause.CausedBy(catalogue.Dispatcher)
		jobChange(&a, p.Job, meta, about)
		if !d.w.broken.keepsWorker {
			workerChange(&a, p.Worker, meta, beside)
		}
		facts, err := d.persist(t, d.w.log.sign(a))
		if err == nil {
			for _, f := range facts {
				d.apply(f)
			}
			return
		}
		d.reload(t, p.Job.ID, p.Worker.ID)
		now, w := d.w.log.get(p.Job.ID), d.w.log.get(p.Worker.ID)
		if now.job.State != job.StateAssigned || now.job.Attempt != p.Job.Attempt {
			return
		}
		p.Job, p.Worker, cause = now.job, w.worker, now.last
	}
}
