package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func (a *app) runCommand() *cobra.Command {
	var flags specFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "run a job and print its output as it comes",
		Long: `Run queues a job, prints its stdout and stderr as they come, and ends as the job did.

Exit code: the job's; 128+n if signal n killed it; 124 if it timed out; 130 if it
was cancelled; 125 if the platform failed. Before the job exists: 1 refused,
2 usage, 3 server unreachable.

The first Ctrl-C (or SIGTERM) cancels the job and waits for its end; the second
leaves it and prints its id. A server that restarts on the way is waited for.

A job whose worker is lost starts again (see --infrastructure-attempts): across the
loss of a worker a command runs at least once, not exactly once. With --max-attempts a
command that fails is tried again as well; --retry-on says after which failures, and
--backoff-... how long the next attempt waits.

With -o json each piece of output is an object on a line of its own, its data in
base64, and the last line is the job.`,
		Example: `  hodei run -- echo hello
  hodei run --env GREETING=hello --timeout 1m -- sh -c 'echo $GREETING'
  hodei run --script deploy.py --interpreter python3
  tar c . | hodei run -i -- tar t
  hodei run --detach -- ./nightly`,
		RunE: func(cmd *cobra.Command, argv []string) error {
			spec, err := flags.spec(a, cmd, argv)
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), spec, detach, flags.room)
		},
	}
	flags.add(a, cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "print the job's id and do not wait for it")
	return cmd
}

// run queues a job and, unless detached, stays with it to its end.
func (a *app) run(ctx context.Context, spec *schedulerv1.JobSpec, detach bool, room time.Duration) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	// From here on a signal is about the job.
	var signals <-chan os.Signal
	if !detach {
		signals = a.claim()
	}
	resp, interrupted, err := a.queue(ctx, r, spec, room, signals)
	if err != nil {
		return err
	}
	j := resp.GetJob()
	if resp.GetExisted() {
		a.note("job %s was queued before, with the same id or key and the same spec", j.GetId())
	}
	if !detach {
		return a.attend(ctx, r, j.GetId(), interrupted, signals)
	}
	if a.json() {
		return render.Object(a.out, j)
	}
	_, err = fmt.Fprintln(a.out, j.GetId())
	return err
}

// queue queues a job. The job can be told apart, so that a lost answer is made up
// for by asking again. A signal in the meantime is about a job that may exist already:
// the answer is waited for, so that it can be cancelled; a second one gives up. A job
// that waits for room does not exist: there the first one gives up.
func (a *app) queue(ctx context.Context, r *remote, spec *schedulerv1.JobSpec, room time.Duration, signals <-chan os.Signal) (resp *schedulerv1.QueueJobResponse, interrupted bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		resp *schedulerv1.QueueJobResponse
		err  error
	}
	answered := make(chan answer, 1)
	var full, stop atomic.Bool
	go func() {
		p := a.patience(r)
		p.room = room
		tried := false
		for {
			resp, err := r.jobs.QueueJob(ctx, &schedulerv1.QueueJobRequest{Spec: spec})
			if err == nil {
				// "existed" after a repetition may be our own first call.
				if tried && spec.GetIdempotencyKey() == "" {
					resp.Existed = false
				}
				answered <- answer{resp, nil}
				return
			}
			tried = tried || !errors.Is(err, fault.Exhausted)
			if full.Store(errors.Is(err, fault.Exhausted)); full.Load() && stop.Load() {
				answered <- answer{nil, err}
				return
			}
			if err = p.bear(ctx, err); err != nil {
				answered <- answer{nil, err}
				return
			}
			full.Store(false)
		}
	}()
	for {
		select {
		case got := <-answered:
			if interrupted && errors.Is(got.err, fault.Exhausted) {
				a.note("interrupted; the job was not queued")
				return nil, true, exitError(exitInterrupted)
			}
			if interrupted && errors.Is(got.err, fault.Unavailable) {
				a.note("interrupted; the server does not answer, the job may have been queued%s", withID(spec.GetId()))
				return nil, true, exitError(exitInterrupted)
			}
			return got.resp, interrupted, got.err
		case <-signals:
			if full.Load() {
				a.note("interrupted; the job was not queued")
				return nil, true, exitError(exitInterrupted)
			}
			if interrupted {
				a.note("interrupted; the job may have been queued%s", withID(spec.GetId()))
				return nil, true, exitError(exitInterrupted)
			}
			interrupted = true
			stop.Store(true)
		}
	}
}

func withID(id string) string {
	if id == "" {
		return ""
	}
	return " as " + id
}

// news is what a goroutine that watches a job has to tell.
type news struct {
	job *schedulerv1.Job
	err error
	// ended: nothing more will come.
	ended bool
}

// attendance is one `hodei run` that waits for its job.
type attendance struct {
	a  *app
	r  *remote
	id string

	job   *schedulerv1.Job // as last seen
	told  string           // the last reason that the user was told
	asked bool             // a cancel was asked for
}

// attend prints a job's output until it has ended and all of it is printed; with
// interrupted it begins by asking for the end.
func (a *app) attend(ctx context.Context, r *remote, id string, interrupted bool, signals <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &attendance{a: a, r: r, id: id}

	states := make(chan news, 16)
	go func() {
		last, err := a.watchJob(ctx, r, id, func(j *schedulerv1.Job) error {
			select {
			case states <- news{job: j}:
			case <-ctx.Done():
			}
			return nil
		})
		select {
		case states <- news{job: last, err: err, ended: true}:
		case <-ctx.Done():
		}
	}()
	came := make(chan struct{}, 1)
	f := &follower{
		r: r, id: id, out: a.newOutput(false), wait: a.patience(r), whole: true,
		alive: func() {
			select {
			case came <- struct{}{}:
			default:
			}
		},
	}
	f.wait.reached = true // it has just queued the job
	following, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing()
	printed := make(chan error, 1)
	go func() { printed <- f.follow(following) }()

	failures := make(chan error, 1)
	cancelJob := func() {
		s.asked = true
		a.note("cancelling job %s and waiting for its end; Ctrl-C again leaves it", id)
		go func() { failures <- s.cancel(ctx) }()
	}
	if interrupted {
		cancelJob()
	}
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	var ended, allPrinted bool
	for !ended || !allPrinted {
		select {
		case n := <-states:
			if n.err != nil {
				return s.lost(n.err)
			}
			s.see(n.job)
			if ended = n.ended; ended {
				quiet.Reset(settle)
				if n.job.GetAttempt() == 0 {
					stopFollowing() // it never ran: there is no output
				}
			}
		case <-came:
			if ended {
				quiet.Reset(settle)
			}
		case <-quiet.C:
			stopFollowing()
		case err := <-printed:
			allPrinted = true
			if err != nil && (!ended || following.Err() == nil) {
				return s.lost(err)
			}
		case <-signals:
			if s.asked {
				return s.leave()
			}
			cancelJob()
		case err := <-failures:
			if err != nil {
				a.explain(err)
			}
		}
	}
	return s.end(ctx, f)
}

// see takes note of a change, and tells the user why the job waits.
func (s *attendance) see(j *schedulerv1.Job) {
	s.job = j
	if j.GetState() != string(job.StatePending) {
		return
	}
	waits := len(j.GetDeferred()) > 0
	lost := j.GetAttempt() > 0
	if why := j.GetReason(); why != "" && why != s.told && (waits || lost) {
		s.told = why
		s.a.say("job "+s.id+" "+why, "", j.GetAdvice())
	}
}

// end prints what is left of the output and how the job ended.
func (s *attendance) end(ctx context.Context, f *follower) error {
	if !f.complete && s.job.GetAttempt() > 0 {
		// The log was never closed, as when its worker was lost: what is stored is all.
		if err := f.rest(ctx, s.job.GetAttempt()); err != nil {
			return s.lost(err)
		}
	}
	f.out.endLine()
	s.a.verdict(s.job)
	if s.a.json() {
		if err := render.Line(s.a.out, s.job); err != nil {
			return err
		}
	}
	if code := outcome(s.job); code != 0 {
		return exitError(code)
	}
	return nil
}

// cancel asks for the job's end until the server has heard it.
func (s *attendance) cancel(ctx context.Context) error {
	p := s.a.patience(s.r)
	p.reached = true
	for {
		_, err := s.r.jobs.CancelJob(ctx, &schedulerv1.CancelJobRequest{JobId: s.id, Reason: "interrupted at the terminal"})
		if err == nil || errors.Is(err, fault.Precondition) {
			return nil // it had ended already
		}
		if err = p.bear(ctx, err); err != nil {
			return err
		}
	}
}

// leave ends the command, not the job.
func (s *attendance) leave() error {
	s.a.note("left job %s; it goes on ending by itself", s.id)
	fmt.Fprintln(s.a.err, s.attach())
	return exitError(exitInterrupted)
}

// lost ends the command because the server is not there any more.
func (s *attendance) lost(err error) error {
	if !errors.Is(err, fault.Unavailable) {
		return fmt.Errorf("following job %s: %w", s.id, err)
	}
	s.a.explain(err)
	s.a.note("lost sight of job %s, which goes on without this command", s.id)
	fmt.Fprintln(s.a.err, s.attach())
	return exitError(exitUnreachable)
}

// attach says how to come back to the job.
func (s *attendance) attach() string {
	return strings.Join([]string{
		"to see it again: `hodei job logs -f " + s.id + "`",
		"`hodei job wait " + s.id + "`",
		"`hodei job get " + s.id + "`",
	}, ", ")
}
