package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// pageSize is how many rows are asked for at once.
const pageSize = 500

func (a *app) jobCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "job", Short: "list jobs, see what became of them, cancel and retry them",
		Example: "  hodei job list\n  hodei job get 0198c2e1",
	})
	cmd.AddCommand(
		a.jobListCommand(), a.jobGetCommand(), a.jobWatchCommand(), a.jobWaitCommand(), a.jobLogsCommand(),
		a.jobHistoryCommand(), a.jobCancelCommand(), a.jobRetryCommand(),
	)
	return cmd
}

// page is how many rows to ask for when limit rows are wanted and n were printed;
// limit 0 = all.
func page(limit, n int) int32 {
	if limit == 0 {
		return pageSize
	}
	return int32(min(pageSize, limit-n))
}

func checkLimit(limit int) error {
	if limit < 0 {
		return Usage("--limit %d: a number of rows, or 0 for all", limit)
	}
	return nil
}

func (a *app) jobListCommand() *cobra.Command {
	var states, labels []string
	var namespace, since, until string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list jobs, newest first",
		Long:  "List prints jobs of all states, newest first. --since and --until go by when a job was queued.",
		Example: `  hodei job list --state RUNNING,PENDING
  hodei job list --label team=web --since 24h --limit 0 -o json`,
		Args: none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &schedulerv1.ListJobsRequest{Namespace: namespace}
			var err error
			if err = checkLimit(limit); err != nil {
				return err
			}
			if req.States, err = known("--state", split(states), job.Transitions.States); err != nil {
				return err
			}
			if req.Labels, err = pairs("--label", labels); err != nil {
				return err
			}
			if req.Since, err = moment("--since", since, a.now()); err != nil {
				return err
			}
			if req.Until, err = moment("--until", until, a.now()); err != nil {
				return err
			}
			return a.listJobs(cmd.Context(), req, limit)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&limit, "limit", 100, "print at most `N` jobs; 0 = all")
	flags.StringSliceVar(&states, "state", nil, "only jobs in these `STATES`, comma separated")
	flags.StringVar(&namespace, "namespace", a.env[envNamespace], "only jobs of this `NAMESPACE` (HODEI_NAMESPACE); default: all")
	flags.StringArrayVar(&labels, "label", nil, "only jobs with this label, `KEY=VALUE`; may be repeated, all must match")
	flags.StringVar(&since, "since", "", "only jobs queued after this `TIME`, RFC 3339 or how long ago, such as 24h")
	flags.StringVar(&until, "until", "", "only jobs queued before this `TIME`")
	return cmd
}

func (a *app) listJobs(ctx context.Context, req *schedulerv1.ListJobsRequest, limit int) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	l := a.newList("ID", "STATE", "EXIT", "NAME", "NAMESPACE", "AGE", "RAN", "ATTEMPT")
	for n := 0; ; {
		req.PageSize = page(limit, n)
		resp, err := r.jobs.ListJobs(ctx, req)
		if err != nil {
			return l.abort(err)
		}
		for _, j := range resp.GetJobs() {
			if err := l.add(j, func() []string { return jobRow(a.now(), j) }); err != nil {
				return err
			}
		}
		n += len(resp.GetJobs())
		if err := l.flush(); err != nil {
			return err
		}
		req.PageToken = resp.GetNextPageToken()
		if req.PageToken == "" || limit > 0 && n >= limit {
			return l.end("no jobs", req.PageToken != "")
		}
	}
}

func jobRow(now time.Time, j *schedulerv1.Job) []string {
	ran := render.Between(j.GetStartedAt(), j.GetFinishedAt())
	if j.GetFinishedAt() == nil && j.GetState() == string(job.StateRunning) {
		ran = render.Age(now, j.GetStartedAt())
	}
	return []string{
		j.GetId(), j.GetState(), exitOf(j), j.GetName(), j.GetNamespace(), render.Age(now, j.GetCreatedAt()), ran, strconv.Itoa(int(j.GetAttempt())),
	}
}

// exitOf is the exit code or signal of a job, as a table shows it.
func exitOf(j *schedulerv1.Job) string {
	switch {
	case j.GetSignal() > 0:
		return "sig " + strconv.Itoa(int(j.GetSignal()))
	case j.ExitCode != nil:
		return strconv.Itoa(int(j.GetExitCode()))
	default:
		return ""
	}
}

// known refuses values that can match nothing, with those that there are.
func known[S ~string](flag string, values []string, all []S) ([]string, error) {
	for i, v := range values {
		found := false
		for _, s := range all {
			if strings.EqualFold(v, string(s)) {
				values[i], found = string(s), true
			}
		}
		if !found {
			return nil, Usage("%s %q: one of %v", flag, v, all)
		}
	}
	return values, nil
}

// list prints rows as a table or as an array, page by page.
type list struct {
	a     *app
	table *render.Table
	array *render.Array
	n     int
}

func (a *app) newList(headings ...string) *list {
	return &list{a: a, table: render.NewTable(a.out, headings...), array: render.NewArray(a.out)}
}

func (l *list) add(m proto.Message, row func() []string) error {
	l.n++
	if l.a.json() {
		return l.array.Add(m)
	}
	l.table.Add(row()...)
	return nil
}

func (l *list) flush() error {
	if l.a.json() {
		return nil
	}
	return l.table.Flush()
}

// abort ends what was begun, so that what is printed is an array still, and returns err.
func (l *list) abort(err error) error {
	if l.a.json() && l.n > 0 {
		_ = l.array.Close() // err is worse
	}
	return err
}

// end ends the list; more tells that the limit has left some out.
func (l *list) end(empty string, more bool) error {
	if l.a.json() {
		return l.array.Close()
	}
	if err := l.table.Flush(); err != nil {
		return err
	}
	switch {
	case l.n == 0:
		l.a.note("%s", empty)
	case more:
		l.a.note("there are more; --limit 0 prints all")
	}
	return nil
}

func (a *app) jobCancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel JOB",
		Short: "ask for the end of a job",
		Long:  "Cancel asks for the end of a job. One that no worker has is CANCELLED at once; else its processes get TERM, then KILL; `hodei job wait` waits for that.",
		Example: "  hodei job cancel 0198c2e1 --reason 'wrong input'\n" +
			"  hodei job list --state PENDING -o json | jq -r '.[].id' | xargs -n1 hodei job cancel",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.jobs.CancelJob(ctx, &schedulerv1.CancelJobRequest{JobId: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.stateOf(resp.GetJob())
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for the record")
	return cmd
}

// stateOf prints a job that was changed: its id and state, or all of it.
func (a *app) stateOf(j *schedulerv1.Job) error {
	if a.json() {
		return render.Object(a.out, j)
	}
	state := j.GetState()
	if j.GetCancelRequested() && !terminal(state) {
		state += " (cancel requested)"
	}
	_, err := fmt.Fprintf(a.out, "%s %s\n", j.GetId(), state)
	return err
}

func (a *app) jobRetryCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "retry JOB",
		Short:             "queue a job that has ended once more, as a new job, and print its id",
		Example:           "  hodei job retry 0198c2e1\n  hodei job wait $(hodei job retry 0198c2e1)",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := a.retry(ctx, r, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp.GetJob())
			}
			_, err = fmt.Fprintln(a.out, resp.GetJob().GetId())
			return err
		},
	}
}

// retry queues a job once more. The new job has an id of ours, so that a lost answer is
// made up for by asking again.
func (a *app) retry(ctx context.Context, r *remote, id string) (*schedulerv1.RetryJobResponse, error) {
	req := &schedulerv1.RetryJobRequest{JobId: id, NewJobId: uuid.Must(uuid.NewV7()).String()}
	p := a.patience(r)
	p.room = waitForRoom
	for {
		resp, err := r.jobs.RetryJob(ctx, req)
		if err == nil {
			return resp, nil
		}
		if err = p.bear(ctx, err); err != nil {
			return nil, err
		}
	}
}

// completeJobs completes the ids of jobs for a shell, as far as a server answers soon.
func (a *app) completeJobs(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, r, err := a.connect(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := r.jobs.ListJobs(ctx, &schedulerv1.ListJobsRequest{IdPrefix: prefix, PageSize: 50})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, j := range resp.GetJobs() {
		out = append(out, j.GetId()+"\t"+j.GetName()+" "+j.GetState())
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}
