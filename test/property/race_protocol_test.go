package property

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	registry "hodei.dev/services/registry/core"
	monitor "hodei.dev/services/timeout-monitor/core"
)

// protocol is one job, a few workers, and everybody who decides about them, each
// on the truth of the log as its versions make them. What the agents do is apart.
type protocol struct {
	t       *rapid.T
	job     job.Job
	workers []worker.Worker
	// runs says on which workers a process of the job may be alive, by attempt.
	runs map[int]int
	// ended are WorkerTerminated events that registry has not seen yet.
	ended []worker.Terminated
	byEnd []int
}

func (p *protocol) facts(jobFacts []job.Event, w int, about []worker.Event) {
	for _, f := range jobFacts {
		p.job = p.job.Evolve(f, job.At{Version: p.job.Version + 1, Time: epoch})
	}
	for _, f := range about {
		p.workers[w] = p.workers[w].Evolve(f, worker.At{Version: p.workers[w].Version + 1, Time: epoch})
		if e, ok := f.(worker.Terminated); ok {
			delete(p.runs, w)
			p.ended, p.byEnd = append(p.ended, e), append(p.byEnd, w)
		}
	}
}

func (p *protocol) recovery(r monitor.Recovery, w int) {
	var jobFacts []job.Event
	var about []worker.Event
	for _, f := range r.Job {
		if e, ok := f.(job.Event); ok {
			jobFacts = append(jobFacts, e)
		}
	}
	for _, f := range r.Worker {
		if e, ok := f.(worker.Event); ok {
			about = append(about, e)
		}
	}
	p.facts(jobFacts, w, about)
}

// check: a worker is BUSY, or drains with a job, exactly when the live job points at
// it; and an attempt is given out only where nothing of an earlier one can be alive.
func (p *protocol) check(doing string) {
	for i, w := range p.workers {
		points := p.job.State.HasWorker() && p.job.WorkerID == w.ID && p.job.Attempt == w.Attempt
		holds := w.State == worker.StateBusy || w.State == worker.StateDraining
		if holds != (points && w.State.Connected()) {
			p.t.Fatalf("%s: worker %d is %s with job %q, the job is %s on %q", doing, i, w.State, w.JobID, p.job.State, p.job.WorkerID)
		}
		if _, alive := p.runs[i]; alive && (p.job.State != job.StateRunning || p.job.WorkerID != w.ID) && !p.job.State.Terminal() {
			p.t.Fatalf("%s: a process of attempt %d may be alive on worker %d (%s), and the job is %s at attempt %d", doing, p.runs[i], i, w.State, p.job.State, p.job.Attempt)
		}
	}
}

// TestNoAttemptRunsBesideAnother drives the decisions of dispatcher, registry,
// timeout-monitor, provisioner, operators and agents in any order.
func TestNoAttemptRunsBesideAnother(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &protocol{t: t, runs: map[int]int{}, workers: make([]worker.Worker, 3)}
		created, err := job.Create(job.Spec{Command: []string{"true"}, Retry: job.Retry{MaxAttempts: 3, InfrastructureAttempts: 3}}, "", "")
		if err != nil {
			t.Fatal(err)
		}
		p.facts(created, 0, nil)
		p.job.ID = "j"
		for i := range p.workers {
			p.workers[i].ID = fmt.Sprint("w", i)
			p.facts(nil, i, worker.Request(worker.ProvisioningRequested{ProviderID: "p", JobsPerWorker: rapid.IntRange(0, 2).Draw(t, "jobs")}))
		}
		rules := monitor.Rules{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, 2).Draw(t, "worker")
			w, j := p.workers[i], p.job
			holds := j.State.HasWorker() && j.WorkerID == w.ID
			what := rapid.SampledFrom([]string{
				"connect", "assign", "hand-over fails", "begin", "result", "cancel", "deadline of ASSIGNED", "deadline of RUNNING", "cancel unanswered",
				"lose", "terminate", "drain", "undrain", "gone", "destroyed", "registry sees the end", "vanished",
			}).Draw(t, "what")
			switch what {
			case "connect":
				if step, err := w.Connecting(""); err == nil {
					p.facts(nil, i, step)
				} else if step, err := w.Attach(1, ""); err == nil {
					p.facts(nil, i, step)
				}
			case "assign":
				facts, err := j.Assign("p", w.ID, 1, "")
				taking, werr := w.Take(j.ID, j.Attempt+1)
				if err == nil && werr == nil {
					p.facts(facts, i, taking)
				}
			case "hand-over fails", "deadline of ASSIGNED":
				if !holds || j.State != job.StateAssigned {
					continue
				}
				if what == "deadline of ASSIGNED" {
					if r, err := rules.RecoverJob(monitor.Deadline{Kind: monitor.Assigned, State: string(j.State)}, j, w, epoch, 0); err == nil {
						p.recovery(r, i)
					}
					continue
				}
				facts, err := j.End(w.ID, j.Attempt, job.Result{Failure: job.Fail(job.CategoryDispatchFailed, "why")}, epoch, 0)
				going, werr := w.Discard(j.ID, j.Attempt, worker.CauseHandOver, "why")
				if err == nil && werr == nil {
					p.facts(facts, i, going)
				}
			case "begin":
				if !holds || j.State != job.StateAssigned {
					continue
				}
				if j.Cancel != nil {
					if out, err := registry.Abort(j, w, j.Attempt, registry.Cancelled(j), epoch, 0); err == nil {
						p.facts(out.Job, i, out.Worker)
					}
				} else if facts, err := j.Start(w.ID, j.Attempt); err == nil {
					p.facts(facts, i, nil)
					if w.State != worker.StateTerminated {
						p.runs[i] = j.Attempt
					}
				}
			case "result":
				if attempt, runs := p.runs[i]; runs {
					delete(p.runs, i) // it reports when nothing of the attempt is left
					if out, err := registry.Finish(j, w, attempt, result(t), epoch, 0); err == nil {
						p.facts(out.Job, i, out.Worker)
					}
				}
			case "cancel":
				if facts, err := j.RequestCancel("user/x", ""); err == nil {
					p.facts(facts, i, nil)
				}
			case "deadline of RUNNING", "cancel unanswered":
				kind := monitor.Running
				if what == "cancel unanswered" {
					kind = monitor.Cancel
				}
				if !holds || kind == monitor.Running && j.State != job.StateRunning || kind == monitor.Cancel && j.Cancel == nil {
					continue
				}
				r, err := rules.RecoverJob(monitor.Deadline{Kind: kind, State: string(j.State), Threshold: time.Second}, j, w, epoch, 0)
				if err != nil {
					t.Fatal(err)
				}
				p.recovery(r, i)
			case "lose":
				if w.State.Connected() {
					if going, err := w.Lose(epoch, ""); err == nil {
						p.facts(nil, i, going)
					}
				}
			case "terminate":
				if going, err := w.Terminate(worker.CauseTerminated, ""); err == nil {
					p.facts(nil, i, going)
				}
			case "drain":
				if facts, err := w.Drain("x"); err == nil {
					p.facts(nil, i, facts)
				}
			case "undrain":
				if facts, err := w.Undrain("x"); err == nil {
					p.facts(nil, i, facts)
				}
			case "gone", "destroyed":
				if what == "destroyed" && w.State != worker.StateTerminating {
					continue
				}
				if facts, err := w.Confirm(""); err == nil {
					p.facts(nil, i, facts)
				}
			case "registry sees the end":
				if len(p.ended) == 0 {
					continue
				}
				e, n := p.ended[0], p.byEnd[0]
				p.ended, p.byEnd = p.ended[1:], p.byEnd[1:]
				if e.JobID == "" {
					continue
				}
				facts, err := registry.Fenced(p.job, p.workers[n], e.Attempt, epoch, 0)
				if err != nil {
					t.Fatal(err)
				}
				p.facts(facts, n, nil)
			case "vanished":
				// The agent, alive, does not have the attempt that runs: nothing of it does.
				if holds && j.State == job.StateRunning && w.State.Connected() {
					delete(p.runs, i)
					if out, err := registry.Finish(j, w, j.Attempt, registry.Vanished(j), epoch, 0); err == nil {
						p.facts(out.Job, i, out.Worker)
					}
				}
			}
			p.check(what)
		}
	})
}
