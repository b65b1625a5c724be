package sim

import (
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/job"

	"hodei.dev/services/registry/core"
)

// What follows is the agent again: an attempt from Run to its acknowledged result.

func (a *agent) run(m message) {
	k := key{m.job, m.attempt}
	fate, known := a.seen[k]
	refuse := func(why string) {
		a.stream.toRegistry(message{kind: "refused", job: m.job, attempt: m.attempt, reason: why})
	}
	accept := func() { a.stream.toRegistry(message{kind: "accepted", job: m.job, attempt: m.attempt}) }
	switch {
	case a.cur != nil && a.cur.key == k:
		accept()
	case known && fate.over:
		refuse("this attempt is over here: " + fate.reason)
	case a.stopping != "":
		refuse(a.stopping)
	case a.cur != nil:
		a.w.busy = append(a.w.busy, busy{a.worker, a.cur.key, k})
		refuse("busy")
	case a.ending > 0:
		a.waiting = &m
	default:
		a.cur = &attempt{key: k}
		accept()
		if known {
			a.never(a.cur, job.CategoryCancelled)
		} else if a.w.broken.agentStartsAlone {
			a.begin(k)
		}
	}
}

func (a *agent) begin(k key) {
	c := a.cur
	if c == nil || c.key != k {
		if _, known := a.seen[k]; !known {
			a.cut()
		}
		return
	}
	if c.started || c.result != nil || a.lease.IsZero() {
		return
	}
	c.started = true
	c.command = a.w.machine.spawn(a.place, k)
}

// onEnd hears that a command has ended.
func (a *agent) onEnd(p *jobProcess) {
	a.act(func() {
		c := p.attempt
		if c == nil {
			return
		}
		c.ended = true
		switch {
		case c.dropped:
			a.ending--
			if next := a.waiting; next != nil && a.ending == 0 && a.stream != nil {
				a.waiting = nil
				a.run(*next)
			}
			return
		case c.unreported && p.killed:
			a.release(c)
			return
		}
		c.result = p.report(c.cause)
		a.report(c)
	})
}

func (a *agent) report(c *attempt) {
	if a.stream != nil && a.welcomed {
		a.stream.toRegistry(message{kind: "result", job: c.job, attempt: c.attempt, report: *c.result})
	}
}

// never concludes an attempt without running it.
func (a *agent) never(c *attempt, category job.Category) {
	c.ended = true
	c.result = &core.Report{JobID: c.job, Attempt: c.attempt, Category: string(category), Message: "it was ended before it started", StartedAt: a.now, FinishedAt: a.now}
	a.report(c)
}

func (a *agent) release(c *attempt) {
	a.seen[c.key] = fate{over: true, reason: "it has ended"}
	if a.cur == c {
		a.cur = nil
	}
}

func (a *agent) drop(k key, reason string) {
	if c := a.cur; c != nil && c.key == k {
		a.cur, c.dropped = nil, true
		if c.command != nil && !c.ended {
			a.ending++
			a.w.machine.kill(c.command)
		}
	}
	a.seen[k] = fate{over: true, reason: "dropped: " + reason}
}

func (a *agent) cancel(k key, reason string) {
	switch c := a.cur; {
	case c == nil || c.key != k:
		if _, known := a.seen[k]; !known {
			a.seen[k] = fate{reason: reason}
		}
	case c.started:
		a.end(c, job.CategoryCancelled)
	case c.result == nil:
		a.never(c, job.CategoryCancelled)
	}
}

// end asks what runs to end: TERM, then KILL.
func (a *agent) end(c *attempt, cause job.Category) {
	if c.cause == "" && c.command != nil && !c.ended {
		c.cause = cause
		a.w.machine.term(c.command)
		a.at(deadline.KillGrace, func() { a.w.machine.kill(c.command) })
	}
}

// expire ends what runs: registry may have given the attempt up.
func (a *agent) expire() {
	a.lease = time.Time{}
	if c := a.cur; c != nil && !c.ended && !a.w.broken.outlivesLease {
		if c.started {
			a.end(c, job.CategoryInfrastructure)
		} else if c.result == nil {
			a.cur = nil
		}
	}
	a.cut()
}

func (a *agent) running() bool { return a.cur != nil && a.cur.started && !a.cur.ended }

// terminate ends the worker: its attempt is no longer its own to report, unless it had
// ended by itself.
func (a *agent) terminate() {
	if a.stopping != "" {
		return
	}
	a.stopping, a.leaveBy = "terminated", a.now.Add(leavePatience)
	a.at(leavePatience, func() {})
	switch c := a.cur; {
	case c == nil:
	case a.running():
		c.unreported = true
		a.w.machine.kill(c.command)
	case c.result == nil:
		a.release(c)
	}
}

// leave says goodbye once there is nothing left to do, or no more time for it.
func (a *agent) leave() {
	late := !a.leaveBy.IsZero() && !a.now.Before(a.leaveBy)
	if a.stopping == "" || !late && (a.cur != nil || a.ending > 0) {
		return
	}
	if a.stream != nil && !a.running() && a.ending == 0 {
		a.stream.toRegistry(message{kind: "goodbye", reason: "goodbye: " + a.stopping})
	}
	a.exit()
}
