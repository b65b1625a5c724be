package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/cmd/hodei/internal/render"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// since is a time with how long ago that was; empty where there is none.
func since(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return render.Time(t) + " (" + render.Age(now, t) + " ago)"
}

func (a *app) jobWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "watch JOB",
		Short:             "print a job's state and each change of it, until it has ended",
		Long:              "Watch prints a line with the job as it is and one for each change. It ends with 0 once the job has ended, however that was; a server that restarts is waited for.",
		Example:           "  hodei job watch 0198c2e1\n  hodei job watch 0198c2e1 -o json | jq -r .state",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			_, err = a.watchJob(ctx, r, args[0], func(j *schedulerv1.Job) error {
				if a.json() {
					return render.Line(a.out, j)
				}
				line := a.now().UTC().Format(time.TimeOnly) + "Z  " + j.GetState()
				if j.GetAttempt() > 0 {
					line += "  attempt " + strconv.Itoa(int(j.GetAttempt()))
				}
				if j.GetReason() != "" {
					line += "  " + render.Plain(j.GetReason())
				}
				_, err := fmt.Fprintln(a.out, line)
				return err
			})
			return err
		},
	}
}

func (a *app) jobWaitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait JOB",
		Short: "wait until a job has ended, and end as it did",
		Long: `Wait ends once the job has, prints its state, and returns the exit code that
"hodei run" would: the job's; 128+n if signal n killed it; 124 if it timed out; 130
if it was cancelled; 125 if the platform failed. A server that restarts is waited for.`,
		Example:           "  hodei job wait 0198c2e1 && echo it worked",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			j, err := a.watchJob(ctx, r, args[0], func(*schedulerv1.Job) error { return nil })
			if err != nil {
				return err
			}
			if err := a.stateOf(j); err != nil {
				return err
			}
			a.verdict(j)
			if code := outcome(j); code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
}

func (a *app) jobLogsCommand() *cobra.Command {
	var follow, timestamps bool
	var tail, attempt int32
	var since, stream string
	cmd := &cobra.Command{
		Use:   "logs JOB",
		Short: "print a job's output",
		Long: `Logs prints what a job wrote: its stdout to stdout, its stderr to stderr, byte for
byte, of its latest attempt unless --attempt says another. With -f it goes on until the
job has ended, over later attempts and restarts of the server too, without gap or
duplicate. With -o json each piece is an object a line, its data in base64.`,
		Example: `  hodei job logs 0198c2e1 --tail 20
  hodei job logs -f 0198c2e1 --timestamps
  hodei job logs 0198c2e1 --attempt 1 --stream stderr`,
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if stream != "" && stream != "stdout" && stream != "stderr" {
				return Usage("--stream %q: stdout or stderr", stream)
			}
			if tail < 0 || attempt < 0 {
				return Usage("--tail and --attempt are not negative")
			}
			from, err := moment("--since", since, a.now())
			if err != nil {
				return err
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			f := &follower{
				r: r, id: args[0], out: a.newOutput(timestamps), wait: a.patience(r),
				only: attempt, stream: stream, tail: tail, since: from,
			}
			return f.printAll(ctx, follow)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the job has ended")
	flags.Int32Var(&tail, "tail", 0, "begin with the last `N` lines of what is stored; 0 = all")
	flags.StringVar(&since, "since", "", "only what was written after this `TIME`, RFC 3339 or how long ago, such as 10m")
	flags.BoolVar(&timestamps, "timestamps", false, "put the time in front of each line")
	flags.Int32Var(&attempt, "attempt", 0, "only attempt `N`; default: the latest, and with -f those that come after it")
	flags.StringVar(&stream, "stream", "", "only `STREAM`, stdout or stderr")
	return cmd
}

// printAll prints what is stored or, with follow, what comes too.
func (f *follower) printAll(ctx context.Context, follow bool) error {
	if follow {
		return unwrapStop(f.follow(ctx))
	}
	req, _ := f.next()
	req.Follow = false
	err := f.read(ctx, req)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return unwrapStop(err)
}

func unwrapStop(err error) error {
	if stop, ok := errors.AsType[stopError](err); ok {
		return stop.error
	}
	return err
}

func (a *app) jobHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "history JOB",
		Short:             "print every event of a job, oldest first",
		Long:              "History prints every event of a job: what happened, when, by whom. `hodei audit trace` shows the events of its workers too, and what caused each.",
		Example:           "  hodei job history 0198c2e1\n  hodei job history 0198c2e1 -o json | jq '.[].type'",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.jobs.GetJobHistory(ctx, &schedulerv1.GetJobHistoryRequest{JobId: args[0]})
			if err != nil {
				return err
			}
			l := a.newList("TIME", "AFTER", "EVENT", "ACTOR", "DETAIL")
			events := resp.GetEvents()
			for _, e := range events {
				err := l.add(e, func() []string {
					return []string{stamp(e), after(events[0], e), e.GetType(), e.GetActor(), detail(e)}
				})
				if err != nil {
					return err
				}
			}
			return l.end("no events", false)
		},
	}
}

// stamp is an event's time to the millisecond.
func stamp(e *schedulerv1.Event) string {
	if e.GetTime() == nil {
		return ""
	}
	return e.GetTime().AsTime().UTC().Format("2006-01-02 15:04:05.000Z")
}

// after is how long after the first event another happened.
func after(first, e *schedulerv1.Event) string {
	d := e.GetTime().AsTime().Sub(first.GetTime().AsTime())
	return strings.Replace("+"+render.Duration(d), "+-", "-", 1)
}
