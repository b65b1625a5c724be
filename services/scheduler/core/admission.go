package core

import (
	"time"

	"hodei.dev/libs/domain/fault"
)

// How long a caller that was refused had best wait: until some jobs have ended, and
// until the log has taken what waits for it.
const (
	retryJobs   = 2 * time.Second
	retryIntake = 500 * time.Millisecond
)

// Limits say how much the scheduler takes on; 0 = no limit.
type Limits struct {
	// Jobs that have not ended, in all and in one namespace.
	Jobs, NamespaceJobs int64
	// IntakeBytes of jobs may wait for the event log at once. One job always may.
	IntakeBytes int64
}

// Counting tells whether jobs have to be counted at all.
func (l Limits) Counting() bool { return l.Jobs > 0 || l.NamespaceJobs > 0 }

// Admission decides whether one more job is taken. It counts the jobs that have not
// ended: those that the read model had at some position of the log, and those that
// were queued here and lie behind it. So its figures come from the log, also right
// after a crash, and cannot leak. Of what ends, or is queued by other replicas, it
// hears with the next reading. Made by [NewAdmission]; not safe for concurrent use.
type Admission struct {
	limits Limits
	// position is how far the reading has the log.
	position int64
	read     tally // by the reading
	intake   tally // on their way into the log, of bytes in all
	bytes    int64
	queued   tally // in the log, behind position
	behind   []arrival
}

// arrival is a job that was queued here.
type arrival struct {
	namespace string
	position  int64
}

// tally counts jobs in all and by namespace.
type tally struct {
	all int64
	of  map[string]int64
}

func (t *tally) add(namespace string, n int64) {
	t.all += n
	if t.of[namespace] += n; t.of[namespace] == 0 {
		delete(t.of, namespace)
	}
}

// NewAdmission returns an admission that has not read anything yet.
func NewAdmission(limits Limits) *Admission {
	empty := func() tally { return tally{of: map[string]int64{}} }
	return &Admission{limits: limits, read: empty(), intake: empty(), queued: empty()}
}

// Observe takes a reading: how many jobs of each namespace had not ended at a
// position of the log.
func (a *Admission) Observe(position int64, live map[string]int64) {
	a.position, a.read = position, tally{of: live}
	for _, n := range live {
		a.read.all += n
	}
	kept := a.behind[:0]
	for _, j := range a.behind {
		if j.position > position {
			kept = append(kept, j)
		} else {
			a.queued.add(j.namespace, -1)
		}
	}
	a.behind = kept
}

// Behind is how many jobs were queued here since the reading.
func (a *Admission) Behind() int { return len(a.behind) }

// Admit takes a job of so many bytes on its way into the log, or says in an Exhausted
// error which limit is reached. Each job that was admitted is settled once.
func (a *Admission) Admit(namespace string, bytes int64) error {
	live := func(t tally) int64 { return t.all }
	of := func(t tally) int64 { return t.of[namespace] }
	sum := func(count func(tally) int64) int64 { return count(a.read) + count(a.intake) + count(a.queued) }
	l := a.limits
	switch {
	case l.Jobs > 0 && sum(live) >= l.Jobs:
		return full(retryJobs, "JOBS_LIMIT", "jobs that have not ended fill the platform: %d, and at most %d are taken on", sum(live), l.Jobs)
	case l.NamespaceJobs > 0 && sum(of) >= l.NamespaceJobs:
		return full(retryJobs, "NAMESPACE_JOBS_LIMIT", "jobs that have not ended fill namespace %q: %d, and at most %d are taken on", namespace, sum(of), l.NamespaceJobs)
	case l.IntakeBytes > 0 && a.bytes > 0 && a.bytes+bytes > l.IntakeBytes:
		return full(retryIntake, "INTAKE_LIMIT", "%d bytes of jobs wait for the event log already, and at most %d may", a.bytes, l.IntakeBytes)
	}
	a.intake.add(namespace, 1)
	a.bytes += bytes
	return nil
}

func full(after time.Duration, code, format string, args ...any) error {
	advice := "send it again after a while; `hodei status` shows what is in the queue, and the scheduler's admission.max_jobs and admission.max_namespace_jobs are the limits"
	if code == "INTAKE_LIMIT" {
		advice = "send it again after a while; if it lasts, see whether Postgres is slow: `hodei status`"
	}
	err := fault.New(fault.Exhausted, format, args...).WithCode(code, advice)
	err.RetryAfter = after
	return err
}

// Settle ends the way of an admitted job into the log. position is that of its
// JobCreated, 0 where it is not in the log, or nobody knows: the next reading does.
func (a *Admission) Settle(namespace string, bytes, position int64) {
	a.intake.add(namespace, -1)
	a.bytes -= bytes
	if a.limits.Counting() && position > a.position {
		a.queued.add(namespace, 1)
		a.behind = append(a.behind, arrival{namespace, position})
	}
}
