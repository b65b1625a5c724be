package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"

	"hodei.dev/services/dispatcher/core"
)

// plan is a decision in the form that the log takes.
type plan struct {
	kind   string
	job    job.Job
	worker worker.Worker
	append store.Append
	// facts are those of all changes, in order.
	facts []any
	// handOver: the job is to be given to the worker afterwards, which handing follows.
	handOver bool
	handing  *handing
}

// outcome is what came of something that was begun.
type outcome struct {
	// settles is the job whose decision has ended; "" where none has.
	settles string
	// retryAt holds that job back.
	retryAt time.Time
	// events became true; job and worker are read again where somebody else was first,
	// and awaited, the worker that the job is SCHEDULED for then.
	events  []observed
	job     *job.Job
	worker  *worker.Worker
	awaited *worker.Worker
	// cause is the last event of job.
	cause event.Event
	// handed is the job whose hand-over has ended: accepted, refused or overtaken.
	handed  string
	handing *handing
	// step has ended, and circuit is what it left; evidence is what was found out about a path.
	step     *core.Step
	circuit  *circuit.Circuit
	evidence *evidence
}

// take feeds an outcome back into the state.
func (d *Dispatcher) take(ctx context.Context, o outcome) {
	for _, e := range o.events {
		d.apply(e)
	}
	for _, w := range []*worker.Worker{o.worker, o.awaited} {
		if w != nil {
			d.state.ObserveWorker(*w)
		}
	}
	if o.job != nil {
		d.state.ObserveJob(*o.job)
		d.causes[o.job.ID] = o.cause
	}
	if o.handed != "" && d.running[o.handed] == o.handing {
		delete(d.running, o.handed)
		if o.settles == "" { // else it was never begun
			d.handed[o.handed] = o.handing.attempt
		}
	}
	d.takeEvidence(o)
	if o.settles != "" {
		d.inFlight--
		d.state.Settle(o.settles, o.retryAt)
	}
	for _, id := range []string{o.settles, o.handed} {
		if id != "" && d.state.JobVersion(id) == 0 {
			d.forget(id)
		}
	}
	if o.job != nil {
		d.handOverDue(ctx, o.job.ID)
	}
}

// forget drops what is kept beside the state about a job that has ended.
func (d *Dispatcher) forget(id string) {
	delete(d.causes, id)
	delete(d.handed, id)
}

// begin makes a decision true, in a goroutine of its own.
func (d *Dispatcher) begin(ctx context.Context, now time.Time, decision core.Decision) {
	d.inFlight++
	p, err := d.plan(now, decision)
	if p.handOver && err == nil {
		p.handing = newHanding(p.job.Attempt+1, p.worker.ID)
		d.running[p.job.ID] = p.handing
	}
	d.work.Go(func() {
		if err != nil {
			// The domain refuses what the core decided: memory is wrong. Read again.
			d.cfg.Logger.ErrorContext(ctx, "a decision is not allowed", "job", decision.JobID(), "kind", p.kind, "error", err)
			d.settleAnew(ctx, p, time.Second)
			return
		}
		if p.handOver && !d.worthTheLast(ctx, p) {
			d.settleAnew(ctx, p, lastChanceWait)
			return
		}
		d.execute(ctx, p)
	})
}

const (
	// lastChanceWait is how long a job waits whose last attempt is not staked yet.
	lastChanceWait = time.Second
	// lastChancePing is how long the session may take to say that its agent lives.
	lastChancePing = 2 * time.Second
)

// worthTheLast keeps a job that cannot lose another attempt from losing it to a
// session that is not there, as while registry restarts: it is asked first. The
// worker goes to the end of the idle ones, so that a dead one holds up nobody.
func (d *Dispatcher) worthTheLast(ctx context.Context, p plan) bool {
	if !core.LastChance(p.job) {
		return true
	}
	asking, cancel := context.WithTimeout(ctx, lastChancePing)
	defer cancel()
	alive, err := d.cfg.Sessions.Ping(asking, p.worker.ID, p.worker.Epoch)
	if alive {
		return true
	}
	d.report(ctx, d.about(p.worker, err))
	d.cfg.Logger.InfoContext(ctx, "a worker's session does not answer: the last attempt is not staked on it", "job", p.job.ID, "worker", p.worker.ID)
	return false
}

// plan turns a decision into changes.
func (d *Dispatcher) plan(now time.Time, decision core.Decision) (plan, error) {
	workerID := ""
	if _, makes := decision.(core.Schedule); makes {
		workerID = d.cfg.NewID()
	}
	decided, err := d.state.Plan(decision, workerID, now, d.cfg.Jitter())
	p := plan{kind: decided.Kind, job: decided.Job, worker: decided.Worker, handOver: decided.HandOver}
	if err == nil {
		err = p.add(d.causes[p.job.ID].CausedBy(service), decided.About, decided.Beside)
	}
	return p, err
}

// add puts the facts about the plan's job, and then those about its worker, into its append.
func (p *plan) add(meta event.Meta, facts []job.Event, about []worker.Event) error {
	if len(facts) > 0 {
		c, err := aggregate.JobChange(p.job, meta, facts)
		if err != nil {
			return err
		}
		p.append.Changes = append(p.append.Changes, c)
	}
	if len(about) > 0 {
		c, err := aggregate.WorkerChange(p.worker, meta, about)
		if err != nil {
			return err
		}
		p.append.Changes = append(p.append.Changes, c)
	}
	for _, f := range facts {
		p.facts = append(p.facts, f)
	}
	for _, f := range about {
		p.facts = append(p.facts, f)
	}
	return nil
}

// execute appends, tells the state, and hands the job over.
func (d *Dispatcher) execute(ctx context.Context, p plan) {
	if len(p.append.Changes) == 0 {
		d.tell(ctx, outcome{settles: p.job.ID})
		return
	}
	events, err := d.append(ctx, p)
	switch {
	case err == nil:
		d.cfg.Meter.Decided(p.kind)
		d.tell(ctx, outcome{settles: p.job.ID, events: events})
		if p.handOver {
			d.handOver(ctx, p.after(events), events[0].Event)
		}
	case ctx.Err() != nil:
	case errors.Is(err, fault.Conflict):
		d.cfg.Meter.Conflict(p.kind)
		d.cfg.Logger.DebugContext(ctx, "somebody else was first", "job", p.job.ID, "kind", p.kind, "error", err)
		d.settleAnew(ctx, p, 0)
	default:
		d.cfg.Logger.ErrorContext(ctx, "a decision cannot be appended", "job", p.job.ID, "kind", p.kind, "error", err)
		d.settleAnew(ctx, p, 5*time.Second)
	}
}

// after is the plan with its job and worker as they are once events are true.
func (p plan) after(events []observed) plan {
	for _, e := range events {
		switch fact := e.fact.(type) {
		case job.Event:
			p.job = p.job.Evolve(fact, job.At{Version: e.StreamVersion, Time: e.Time})
		case worker.Event:
			p.worker = p.worker.Evolve(fact, worker.At{Version: e.StreamVersion, Time: e.Time})
		}
	}
	return p
}

// append makes the plan true. While Postgres is away it repeats the same append,
// which the log answers as the first time.
func (d *Dispatcher) append(ctx context.Context, p plan) ([]observed, error) {
	var out []observed
	err := d.persist(ctx, "append a decision", func() error {
		events, err := d.cfg.Log.Append(ctx, p.append)
		if err != nil {
			return err
		}
		out = make([]observed, len(events))
		for i, e := range events {
			e.Data = nil
			out[i] = observed{e, p.facts[i]}
		}
		return nil
	})
	return out, err
}

// logAway is how long the dispatcher waits while it cannot read or append.
var logAway = job.Backoff{Initial: unit.Duration(250 * time.Millisecond), Factor: 2, Max: unit.Duration(4 * time.Second), Jitter: 0.5}

// persist repeats fn with backoff while what it needs is away and ctx goes on.
func (d *Dispatcher) persist(ctx context.Context, doing string, fn func() error) error {
	for n := 0; ; n++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !errors.Is(err, fault.Unavailable) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		wait := logAway.Delay(n+1, d.cfg.Jitter())
		d.cfg.Logger.WarnContext(ctx, "the event log is away, trying again", "doing", doing, "error", err, "in", wait)
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}

// settleAnew reads a plan's job and worker again and ends the hold on them; the
// job is held back for wait.
func (d *Dispatcher) settleAnew(ctx context.Context, p plan, wait time.Duration) {
	o, err := d.reload(ctx, p.job.ID, p.worker.ID)
	if err != nil && ctx.Err() == nil {
		d.cfg.Logger.ErrorContext(ctx, "a job cannot be read", "job", p.job.ID, "error", err)
		wait = 30 * time.Second
	}
	o.settles = p.job.ID
	if p.handOver {
		o.handed, o.handing = p.job.ID, p.handing
	}
	if wait > 0 {
		o.retryAt = d.cfg.Now().Add(wait)
	}
	d.tell(ctx, o)
}

// reload reads a job, the given worker where there is one, and the worker that the
// job is SCHEDULED for: without it the job would seem to wait in vain.
func (d *Dispatcher) reload(ctx context.Context, jobID, workerID string) (o outcome, err error) {
	err = d.persist(ctx, "read a job again", func() error {
		o = outcome{}
		events, err := d.cfg.Log.Load(ctx, aggregate.JobStream(jobID), 0)
		if err != nil {
			return fmt.Errorf("load job %s: %w", jobID, err)
		}
		var j job.Job
		for _, e := range events {
			if j, err = aggregate.EvolveJob(j, e); err != nil {
				return err
			}
			o.cause = e
			o.cause.Data = nil
		}
		if j.Version > 0 {
			o.job = &j
		}
		if o.worker, err = d.reloadWorker(ctx, workerID); err != nil {
			return err
		}
		if j.State == job.StateScheduled && j.WorkerID != workerID {
			o.awaited, err = d.reloadWorker(ctx, j.WorkerID)
		}
		return err
	})
	return o, err
}

// reloadWorker returns nil for a worker that is not in the log.
func (d *Dispatcher) reloadWorker(ctx context.Context, id string) (*worker.Worker, error) {
	if id == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	w, err := aggregate.LoadWorker(ctx, d.cfg.Log, id)
	if errors.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // it was only decided
	}
	if err != nil {
		return nil, err
	}
	return &w, nil
}

// tell hands an outcome to Run's goroutine.
func (d *Dispatcher) tell(ctx context.Context, o outcome) {
	select {
	case d.outcomes <- o:
	case <-ctx.Done():
	}
}

// pause waits and tells whether ctx still goes on.
func pause(ctx context.Context, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
