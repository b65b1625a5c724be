package sim

import (
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/dispatcher/core"
)

// What follows is the dispatcher again: hand-overs.

// handing is a hand-over that runs; news has a token when something has happened to
// its job or worker.
type handing struct {
	attempt int
	news    queue[struct{}]
}

// tellHandOver passes an event on to the hand-over that it is about.
func (d *dispatcher) tellHandOver(f fact) {
	jobID := ""
	switch own := f.says.(type) {
	case job.Event:
		jobID = f.Stream.ID
	case worker.Terminated:
		jobID = own.JobID
	case worker.Reconnected, worker.StatusChanged:
		w, _ := d.state.Worker(f.Stream.ID)
		jobID = w.JobID
	default:
		return
	}
	if h, ok := d.running[jobID]; ok {
		if len(h.news.items) == 0 {
			h.news.put(struct{}{})
		}
		return
	}
	if _, back := f.says.(worker.Reconnected); back {
		delete(d.handed, jobID)
	}
	d.handOverDue(jobID)
}

// handOverDue begins the hand-over of a job that is ASSIGNED and for which this
// dispatcher has not sent RUN.
func (d *dispatcher) handOverDue(jobID string) {
	j, ok := d.state.Job(jobID)
	if !ok || j.State != job.StateAssigned || d.running[jobID] != nil || d.handed[jobID] == j.Attempt {
		return
	}
	w, ok := d.state.Worker(j.WorkerID)
	if !ok || w.JobID != jobID {
		return
	}
	p := decided{Plan: core.Plan{Job: j, Worker: w}, handing: &handing{attempt: j.Attempt}}
	d.running[jobID] = p.handing
	cause := d.causes[jobID]
	d.start(func(t *task) { d.handOver(t, p, cause) })
}

// handOver sends RUN. A session that is gone is no refusal: RUN goes to the worker's
// next one, as long as the grace lasts. Otherwise the attempt ends.
func (d *dispatcher) handOver(t *task, p decided, cause event.Event) {
	jobID, last := p.Job.ID, known{}
	defer func() {
		if last.job.ID != "" {
			d.take(last)
		}
		if d.running[jobID] == p.handing {
			delete(d.running, jobID)
			d.handed[jobID] = p.handing.attempt
		}
		d.handOverDue(jobID)
		d.kick(0)
	}()
	until, tries := d.clock().Add(handOverGrace), 0
	for conflicts := 0; conflicts < rounds; {
		d.w.chaos.point(d.process, "before RUN")
		a := d.w.net.run(t, p.Worker.ID, p.Worker.Epoch, run{job: p.Job.ID, attempt: p.Job.Attempt, workerVersion: p.Worker.Version}, handOverTimeout)
		d.evidence(p.Worker.ID, p.Worker.Replica, a)
		if a.refusal == "" || d.w.broken.ignoresRefusals {
			return
		}
		d.kick(0)
		if a.gone && !d.w.broken.goneRefuses && !going(p.Worker) && d.clock().Before(until) {
			pause := min(firstResend<<min(tries, 5), lastResend, max(until.Sub(d.clock()), time.Millisecond))
			tries++
			if _, news := take(t, &p.handing.news, pause); !news {
				continue
			}
		} else {
			facts, err := d.refuse(t, p, cause, a.refusal)
			if err == nil {
				for _, f := range facts {
					d.apply(f)
				}
				return
			}
			if !isConflict(err) {
				return
			}
			conflicts++
		}
		last = d.reload(t, p.Job.ID, p.Worker.ID)
		if last.job.State != job.StateAssigned || last.job.Attempt != p.Job.Attempt {
			return
		}
		p.Job, p.Worker, cause = last.job, last.workers[0], last.cause
	}
}

// refuse appends that the hand-over failed: the attempt's end and the worker's.
func (d *dispatcher) refuse(t *task, p decided, cause event.Event, refusal string) ([]fact, error) {
	about, beside, err := core.Refused(p.Job, p.Worker, refusal, d.clock(), d.rng.Float64())
	if err != nil {
		return nil, err
	}
	var a store.Append
	meta := cause.CausedBy(catalogue.Dispatcher)
	jobChange(&a, p.Job, meta, about)
	if !d.w.broken.keepsWorker {
		workerChange(&a, p.Worker, meta, beside)
	}
	return d.persist(t, d.w.log.sign(a))
}

func going(w worker.Worker) bool {
	return w.State == worker.StateTerminating || w.State == worker.StateTerminated
}
