package sim

import (
	"errors"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"

	"hodei.dev/services/registry/core"
)

// machine is where resources are and commands run: outside the system under test. Its
// journal of what ran when is the truth that the log is compared with.
type machine struct {
	w         *world
	resources map[string]*resource
	order     []*resource
	// journal has every command that was ever started.
	journal []*jobProcess
	// watch is told of resources that have ended by themselves; nil while nobody listens.
	watch func(workerID, reason string)
}

// resource is what a provider made for a worker: an agent and what it runs.
type resource struct {
	worker string
	agent  *agent
	runs   []*jobProcess
	gone   bool
}

// jobProcess is a command of a job, from its start to its end.
type jobProcess struct {
	attempt    *attempt
	key        key
	worker     string
	agent      *agent
	start, end time.Time // end is zero while it runs
	exit       int
	ignores    bool // it ignores TERM
	termed     bool
	killed     bool // it did not end by itself
}

var (
	errIll   = errors.New("the provider has an ill day")
	errFails = fault.New(fault.Precondition, "the provider can make nothing")
)

// create makes the resource of a worker: get or create.
func (m *machine) create(t *task, workerID string, token func(t *task) (string, error)) error {
	if m.w.chaos.during(failProvider) {
		t.sleep(m.w.between(10*time.Millisecond, 500*time.Millisecond))
		return errFails
	}
	ill := m.w.chaos.ill()
	if ill && m.w.chance(0.5) {
		t.sleep(m.w.between(10*time.Millisecond, 2*time.Second))
		return errIll
	}
	if m.resources[workerID] != nil {
		return nil
	}
	secret, err := token(t)
	if err != nil {
		return err
	}
	made := &box[bool]{}
	// It is made whether or not the one who asked is still there.
	m.w.after(m.w.between(20*time.Millisecond, 500*time.Millisecond)+m.w.chaos.slowness(), func() {
		if m.resources[workerID] == nil {
			r := &resource{worker: workerID}
			m.resources[workerID] = r
			m.order = append(m.order, r)
			m.w.tell(workerID, "its resource exists")
			m.boot(r, secret)
		}
		made.put(true)
	})
	wait(t, made, 0)
	if ill {
		return errIll
	}
	return nil
}

// destroy ends the resource and everything in it; nil means that nothing is left.
func (m *machine) destroy(t *task, workerID string) error {
	took := 200 * time.Millisecond
	if m.w.chance(0.2) {
		took = 8 * time.Second // what it runs does not go easily
	}
	t.sleep(m.w.between(5*time.Millisecond, took))
	if m.w.chaos.ill() {
		return errIll
	}
	if r := m.resources[workerID]; r != nil {
		if m.w.broken.destroysAgentOnly {
			r.agent.kill()
			delete(m.resources, workerID)
			return nil
		}
		m.end(r)
	}
	return nil
}

// end ends all of a resource.
func (m *machine) end(r *resource) {
	r.gone = true
	delete(m.resources, r.worker)
	if a := r.agent; !a.dead {
		stream := a.stream
		a.kill()
		if stream != nil {
			stream.closeByAgent()
		}
	}
	for _, p := range r.runs {
		m.kill(p)
	}
	m.w.tell(r.worker, "its resource is gone")
}

// list names what exists, in order.
func (m *machine) list(t *task) ([]string, error) {
	t.sleep(m.w.between(time.Millisecond, 20*time.Millisecond))
	if m.w.chaos.ill() {
		return nil, errIll
	}
	var out []string
	for _, r := range m.order {
		if !r.gone && m.resources[r.worker] == r {
			out = append(out, r.worker)
		}
	}
	return out, nil
}

// exited notes that an agent's process has ended; what it ran is left behind.
func (m *machine) exited(r *resource) {
	m.w.tell(r.worker, "its agent has exited")
	if m.w.elsewhere {
		m.end(r)
		return
	}
	if m.watch != nil {
		watch := m.watch
		m.w.after(m.w.between(time.Millisecond, 50*time.Millisecond), func() { watch(r.worker, "its process has exited") })
	}
}

// spawn starts the command of an attempt.
func (m *machine) spawn(r *resource, k key) *jobProcess {
	plan := m.w.jobs[k.job].attempt(k.attempt)
	p := &jobProcess{attempt: r.agent.cur, key: k, worker: r.worker, agent: r.agent, start: m.w.now, exit: plan.exit, ignores: plan.ignores}
	m.journal = append(m.journal, p)
	r.runs = append(r.runs, p)
	m.w.tell(k.job, "its command starts on "+short(r.worker))
	m.w.after(plan.takes, func() { m.over(p) })
	if timeout := m.w.jobs[k.job].timeout; timeout > 0 {
		a := r.agent
		a.at(timeout, func() {
			if c := p.attempt; !c.ended {
				a.end(c, job.CategoryTimeout)
			}
		})
	}
	return p
}

// term asks a command to end; it may not listen.
func (m *machine) term(p *jobProcess) {
	if p.end.IsZero() && !p.ignores {
		p.termed = true
		m.w.after(m.w.between(time.Millisecond, 300*time.Millisecond), func() {
			if p.end.IsZero() {
				p.killed = true
				m.over(p)
			}
		})
	}
}

func (m *machine) kill(p *jobProcess) {
	if p.end.IsZero() {
		p.killed = true
		m.over(p)
	}
}

func (m *machine) over(p *jobProcess) {
	if !p.end.IsZero() {
		return
	}
	p.end = m.w.now
	m.w.tell(p.key.job, "its command on "+short(p.worker)+" has ended")
	a := p.agent
	a.later(m.w.between(0, 2*time.Millisecond), func() { a.onEnd(p) })
}

// report is how the command ended, as its agent tells it.
func (p *jobProcess) report(cause job.Category) *core.Report {
	r := &core.Report{JobID: p.key.job, Attempt: p.key.attempt, StartedAt: p.start, FinishedAt: p.end}
	switch {
	case p.killed && cause != "":
		r.Category, r.Message, r.Signal = string(cause), "it was ended", 15
	case p.killed:
		r.Signal = 9
	default:
		r.ExitCode = &p.exit
	}
	return r
}
