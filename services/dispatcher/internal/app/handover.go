package app

import (
	"context"
	"errors"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/core"
)

const service = catalogue.Dispatcher

// handOverRounds is how often a hand-over goes on after a conflict that was about
// something else; after that the deadline of ASSIGNED decides.
const handOverRounds = 5

// handing is a hand-over that runs.
type handing struct {
	attempt  int
	workerID string
	// news has a token when something has happened to its job or worker.
	news chan struct{}
}

func newHanding(attempt int, workerID string) *handing {
	return &handing{attempt: attempt, workerID: workerID, news: make(chan struct{}, 1)}
}

func (h *handing) tell() {
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// tellHandOver passes an event on to the hand-over that it is about. A worker that is
// back gets RUN in its new session where nobody is about to send it: it waits for it.
func (d *Dispatcher) tellHandOver(ctx context.Context, o observed) {
	jobID := ""
	switch fact := o.fact.(type) {
	case job.Event:
		jobID = o.Stream.ID
	case worker.Terminated:
		jobID = fact.JobID
	case worker.Reconnected, worker.StatusChanged:
		w, _ := d.state.Worker(o.Stream.ID)
		jobID = w.JobID
	default:
		return
	}
	if h, ok := d.running[jobID]; ok {
		h.tell()
		return
	}
	if _, back := o.fact.(worker.Reconnected); back {
		delete(d.handed, jobID)
	}
	d.handOverDue(ctx, jobID)
}

// handOverDue begins the hand-over of a job that is ASSIGNED and for which this
// dispatcher has not sent RUN: another has assigned it, which was active too for a
// moment, and may have ended before it sent any. It makes no difference whether an
// event says so or whoever has read the job or its worker again.
func (d *Dispatcher) handOverDue(ctx context.Context, jobID string) {
	j, ok := d.state.Job(jobID)
	if !ok || j.State != job.StateAssigned || d.running[jobID] != nil || d.handed[jobID] == j.Attempt {
		return
	}
	if w, ok := d.state.Worker(j.WorkerID); ok && w.JobID == jobID {
		d.handAgain(ctx, j, w)
	}
}

// handAgain hands over a job that is ASSIGNED already: RUN may never have been
// sent, and an agent that has it only says so again.
func (d *Dispatcher) handAgain(ctx context.Context, j job.Job, w worker.Worker) {
	p := plan{job: j, worker: w, handing: newHanding(j.Attempt, w.ID)}
	d.running[j.ID] = p.handing
	cause := d.causes[j.ID]
	d.work.Go(func() { d.handOver(ctx, p, cause) })
}

// handOver sends RUN to the worker's session. A session that is gone is no refusal: the
// agent has not been asked, and may be back with its next one: RUN goes there then, for
// as long as the grace lasts. Otherwise the attempt ends and the worker goes, in one
// append; where that append finds that the attempt went on or ended, all is well.
func (d *Dispatcher) handOver(ctx context.Context, p plan, cause event.Event) {
	o := outcome{handed: p.job.ID, handing: p.handing}
	defer func() { d.tell(ctx, o) }()
	wait := &patience{until: d.cfg.Now().Add(d.cfg.HandOverGrace)}
	for conflicts := 0; conflicts < handOverRounds; {
		refusal := d.send(ctx, p, cause)
		if ctx.Err() != nil {
			return
		}
		if refusal == nil {
			o.evidence = d.about(p.worker, nil)
			return
		}
		d.report(ctx, d.about(p.worker, refusal))
		var now outcome
		var err error
		if d.mayComeBack(refusal, p, wait) {
			if !d.await(ctx, p.handing, wait) {
				if ctx.Err() != nil {
					return
				}
				continue // nothing is new: perhaps it is heard now
			}
			now, err = d.reload(ctx, p.job.ID, p.worker.ID)
		} else {
			if now.events, err = d.refuse(ctx, p, cause, refusal); err == nil {
				o.events = now.events
				return
			}
			if !errors.Is(err, fault.Conflict) {
				return
			}
			conflicts++
			now, err = d.reload(ctx, p.job.ID, p.worker.ID)
		}
		if err != nil {
			if ctx.Err() == nil {
				d.cfg.Logger.ErrorContext(ctx, "a job cannot be read", "job", p.job.ID, "error", err)
			}
			return
		}
		now.handed, now.handing = p.job.ID, p.handing // whatever came of it, this hand-over ends
		o = now
		if now.job == nil || now.worker == nil || now.job.State != job.StateAssigned || now.job.Attempt != p.job.Attempt {
			return
		}
		// A notice was first, perhaps that the agent has a new session: try that.
		p.job, p.worker, cause = *now.job, *now.worker, now.cause
	}
	d.cfg.Logger.WarnContext(ctx, "a hand-over is left to its deadline", "job", p.job.ID, "worker", p.worker.ID, "attempt", p.job.Attempt)
}

// patience is how long a hand-over waits for a session that is gone.
type patience struct {
	until time.Time
	tries int
}

// mayComeBack tells whether the hand-over waits for the worker's next session.
func (d *Dispatcher) mayComeBack(refusal error, p plan, wait *patience) bool {
	_, gone := errors.AsType[*SessionGone](refusal)
	going := p.worker.State == worker.StateTerminating || p.worker.State == worker.StateTerminated
	return gone && !going && d.cfg.Now().Before(wait.until)
}

// The pauses before RUN is sent again to a session that nobody seems to hold.
const (
	firstResend = 250 * time.Millisecond
	lastResend  = 2 * time.Second
)

// await waits for news of the job or its worker, or until it is time to send again; it
// tells whether there are news.
func (d *Dispatcher) await(ctx context.Context, h *handing, wait *patience) bool {
	t := time.NewTimer(min(firstResend<<min(wait.tries, 5), lastResend, max(wait.until.Sub(d.cfg.Now()), 0)))
	defer t.Stop()
	wait.tries++
	select {
	case <-h.news:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// refuse appends that the hand-over failed, and says so.
func (d *Dispatcher) refuse(ctx context.Context, p plan, cause event.Event, refusal error) ([]observed, error) {
	d.cfg.Logger.WarnContext(ctx, "a hand-over failed", "job", p.job.ID, "worker", p.worker.ID, "attempt", p.job.Attempt, "error", refusal)
	events, err := d.endAttempt(ctx, p, cause, refusal)
	if err != nil && ctx.Err() == nil && !errors.Is(err, fault.Conflict) {
		d.cfg.Logger.ErrorContext(ctx, "a failed hand-over cannot be appended", "job", p.job.ID, "error", err)
	}
	return events, err
}

// send asks the session to take the job; nil means that the agent has accepted.
func (d *Dispatcher) send(ctx context.Context, p plan, cause event.Event) error {
	select {
	case d.handing <- struct{}{}:
		defer func() { <-d.handing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.HandOverTimeout)
	defer cancel()
	began := d.cfg.Now()
	err := d.cfg.Sessions.Run(ctx, p.worker.Epoch, command.Request{
		Kind: command.Run, WorkerID: p.worker.ID, JobID: p.job.ID, Attempt: p.job.Attempt,
		JobVersion: p.job.Version, WorkerVersion: p.worker.Version,
		CorrelationID: cause.CorrelationID, CausationID: cause.ID, TraceParent: cause.TraceParent, TraceState: cause.TraceState,
	})
	d.cfg.Meter.HandOver(d.cfg.Now().Sub(began), err != nil)
	return err
}

// endAttempt appends that the hand-over failed: the attempt's end and the worker's.
func (d *Dispatcher) endAttempt(ctx context.Context, p plan, cause event.Event, refusal error) ([]observed, error) {
	about, beside, err := core.Refused(p.job, p.worker, refusal.Error(), d.cfg.Now(), d.cfg.Jitter())
	if err != nil {
		return nil, err
	}
	q := plan{job: p.job, worker: p.worker}
	if err := q.add(cause.CausedBy(service), about, beside); err != nil {
		return nil, err
	}
	return d.append(ctx, q)
}
