package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/worker"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func (a *app) workerCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "worker", Short: "list and watch workers, drain and terminate them, issue tokens",
		Example: "  hodei worker list\n  hodei worker drain 0198c2e1",
	})
	cmd.AddCommand(
		a.workerListCommand(), a.workerGetCommand(), a.workerWatchCommand(), a.workerDrainCommand(),
		a.workerUndrainCommand(), a.workerTerminateCommand(), a.workerTokenCommand(),
	)
	return cmd
}

func (a *app) workerListCommand() *cobra.Command {
	var states []string
	var provider string
	var all bool
	var limit int
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list workers",
		Long:    "List prints the workers that there are. Those that are gone (TERMINATED) come with --all, or with --state.",
		Example: "  hodei worker list\n  hodei worker list --state READY,BUSY --provider local -o json",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkLimit(limit); err != nil {
				return err
			}
			wanted, err := known("--state", split(states), worker.Transitions.States)
			if err != nil {
				return err
			}
			return a.listWorkers(cmd.Context(), &registryv1.ListWorkersRequest{States: wanted, Provider: provider, IncludeTerminated: all}, limit)
		},
	}
	cmd.Flags().StringSliceVar(&states, "state", nil, "only workers in these `STATES`, comma separated")
	cmd.Flags().StringVar(&provider, "provider", "", "only workers of this provider, by `NAME` or id")
	cmd.Flags().BoolVar(&all, "all", false, "also those that are gone")
	cmd.Flags().IntVar(&limit, "limit", 100, "print at most `N` workers; 0 = all")
	return cmd
}

func (a *app) listWorkers(ctx context.Context, req *registryv1.ListWorkersRequest, limit int) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	l := a.newList("ID", "STATE", "PROVIDER", "JOB", "DONE", "AGE", "HEARTBEAT", "HOST")
	for n := 0; ; {
		req.PageSize = page(limit, n)
		resp, err := r.workers.ListWorkers(ctx, req)
		if err != nil {
			return l.abort(err)
		}
		for _, w := range resp.GetWorkers() {
			if err := l.add(w, func() []string { return workerRow(a.now(), w) }); err != nil {
				return err
			}
		}
		n += len(resp.GetWorkers())
		if err := l.flush(); err != nil {
			return err
		}
		req.PageToken = resp.GetNextPageToken()
		if req.PageToken == "" || limit > 0 && n >= limit {
			return l.end("no workers", req.PageToken != "")
		}
	}
}

func workerRow(now time.Time, w *registryv1.Worker) []string {
	beat := ""
	if w.GetState() != string(worker.StateTerminated) {
		beat = render.Age(now, w.GetLastHeartbeatAt())
	}
	return []string{
		w.GetId(), w.GetState(), nameOr(w.GetProviderName(), w.GetProviderId()), w.GetJobId(), jobsDone(w),
		render.Age(now, w.GetCreatedAt()), beat, w.GetHostname(),
	}
}

func nameOr(name, id string) string {
	if name != "" {
		return name
	}
	return id
}

// jobsDone is how many jobs a worker has done of those that it may do.
func jobsDone(w *registryv1.Worker) string {
	if w.GetJobsPerWorker() == 0 {
		return strconv.Itoa(int(w.GetJobsDone()))
	}
	return fmt.Sprintf("%d/%d", w.GetJobsDone(), w.GetJobsPerWorker())
}

func (a *app) workerGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "get WORKER",
		Short:   "say all about a worker",
		Example: "  hodei worker get 0198c2e1\n  hodei worker get 0198c2e1 -o json",
		Args:    args(1, 1, "WORKER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.workers.GetWorker(ctx, &registryv1.GetWorkerRequest{WorkerId: args[0]})
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp.GetWorker())
			}
			return a.describeWorker(resp.GetWorker())
		},
	}
}

func (a *app) describeWorker(w *registryv1.Worker) error {
	now := a.now()
	var s render.Sheet
	s.Add("id", "%s", w.GetId())
	s.Add("state", "%s", w.GetState())
	s.Add("why", "%s", w.GetReason())
	s.Add("cause", "%s", w.GetCause())
	s.Add("provider", "%s", w.GetProviderId())
	if w.GetProviderName() != "" {
		s.Add("provider name", "%s", w.GetProviderName())
	}
	if w.GetJobId() != "" {
		s.Add("job", "%s (attempt %d)", w.GetJobId(), w.GetAttempt())
	}
	s.Add("jobs done", "%s", jobsDone(w))
	connected := "no"
	if w.GetConnected() {
		connected = fmt.Sprintf("yes (session %d)", w.GetEpoch())
	}
	s.Add("connected", "%s", connected)
	s.Add("heartbeat", "%s", since(now, w.GetLastHeartbeatAt()))
	s.Add("created", "%s", since(now, w.GetCreatedAt()))
	s.Add("ready", "%s", since(now, w.GetReadyAt()))
	s.Add("changed", "%s", since(now, w.GetChangedAt()))
	s.Add("terminated", "%s", since(now, w.GetTerminatedAt()))
	s.Add("host", "%s", w.GetHostname())
	s.Add("agent", "%s", w.GetAgentVersion())
	s.Add("resource", "%s", w.GetResource())
	s.Add("details", "%s", render.Pairs(w.GetDetails()))
	if v := w.GetCpuMillis(); v > 0 {
		s.Add("cpu", "%s", render.Cores(v))
	}
	if v := w.GetMemoryBytes(); v > 0 {
		s.Add("memory", "%s", render.Bytes(v))
	}
	return s.Print(a.out)
}

func (a *app) workerWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "watch [WORKER]",
		Short:   "print each change of a worker, or of all workers, as it happens",
		Long:    "Watch prints a line for each change. With a worker it begins with it as it is and ends with its life; without one it goes on until Ctrl-C. A server that restarts is waited for.",
		Example: "  hodei worker watch\n  hodei worker watch 0198c2e1 -o json",
		Args:    args(0, 1, "WORKER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			req := &registryv1.WatchWorkersRequest{}
			if len(args) > 0 {
				req.WorkerId = args[0]
			}
			return a.watchWorkers(ctx, r, req)
		},
	}
}

func (a *app) watchWorkers(ctx context.Context, r *remote, req *registryv1.WatchWorkersRequest) error {
	p := a.patience(r)
	seen := map[string]int64{}
	for {
		err := a.watchWorkersOnce(ctx, r, req, p, seen)
		if errors.Is(err, errEnded) {
			return nil
		}
		if stop, ok := errors.AsType[stopError](err); ok {
			return stop.error
		}
		if err = p.bear(ctx, err); err != nil {
			return err
		}
	}
}

// watchWorkersOnce follows one stream; it never returns nil.
func (a *app) watchWorkersOnce(ctx context.Context, r *remote, req *registryv1.WatchWorkersRequest, p *patience, seen map[string]int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.workers.WatchWorkers(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		w := m.GetWorker()
		if errors.Is(err, io.EOF) && req.GetWorkerId() != "" && len(seen) > 0 {
			return errEnded
		}
		if err != nil {
			return err
		}
		p.renew()
		if w == nil || w.GetVersion() > 0 && w.GetVersion() <= seen[w.GetId()] {
			continue
		}
		seen[w.GetId()] = w.GetVersion()
		if err := a.workerChange(w); err != nil {
			return stopError{err}
		}
		if w.GetState() == string(worker.StateTerminated) {
			delete(seen, w.GetId()) // it will not be heard of again
			if req.GetWorkerId() != "" {
				return errEnded
			}
		}
	}
}

func (a *app) workerChange(w *registryv1.Worker) error {
	if a.json() {
		return render.Line(a.out, w)
	}
	line := a.now().UTC().Format(time.TimeOnly) + "Z  " + w.GetId() + "  " + w.GetState()
	if w.GetJobId() != "" {
		line += "  job " + w.GetJobId()
	}
	if w.GetReason() != "" {
		line += "  " + render.Plain(w.GetReason())
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

// workerState prints a worker that was changed.
func (a *app) workerState(w *registryv1.Worker) error {
	if a.json() {
		return render.Object(a.out, w)
	}
	_, err := fmt.Fprintf(a.out, "%s %s\n", w.GetId(), w.GetState())
	return err
}

func (a *app) drain(ctx context.Context, id string, undo bool) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	resp, err := r.workers.DrainWorker(ctx, &registryv1.DrainWorkerRequest{WorkerId: id, Undo: undo})
	if err != nil {
		return err
	}
	return a.workerState(resp.GetWorker())
}

func (a *app) workerDrainCommand() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:     "drain WORKER",
		Short:   "let a worker finish its job and take nothing new",
		Long:    "Drain lets a worker that is BUSY finish its job, then it goes; one that is READY goes at once. --undo takes it back while the worker still has its job.",
		Example: "  hodei worker drain 0198c2e1\n  hodei worker drain --undo 0198c2e1",
		Args:    args(1, 1, "WORKER"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.drain(cmd.Context(), args[0], undo) },
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "take a drain back")
	return cmd
}

func (a *app) workerUndrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "undrain WORKER",
		Short:   "take a drain back while the worker still has its job",
		Example: "  hodei worker undrain 0198c2e1",
		Args:    args(1, 1, "WORKER"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.drain(cmd.Context(), args[0], true) },
	}
}

func (a *app) workerTerminateCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "terminate WORKER",
		Short:   "destroy a worker; the job that it holds is queued again",
		Long:    "Terminate destroys a worker and everything that it runs. A job that it holds gets TERM, and KILL 10 s later; it is queued again once nothing of it is left, if it may lose another attempt; `worker drain` lets it finish.",
		Example: "  hodei worker terminate 0198c2e1 --reason 'bad disk'",
		Args:    args(1, 1, "WORKER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.workers.TerminateWorker(ctx, &registryv1.TerminateWorkerRequest{WorkerId: args[0], Reason: reason})
			if err != nil {
				return err
			}
			return a.workerState(resp.GetWorker())
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for the record")
	return cmd
}

func (a *app) workerTokenCommand() *cobra.Command {
	var provider, ttl string
	cmd := &cobra.Command{
		Use:   "token --provider NAME",
		Short: "make a worker of an external provider, and the token for its agent",
		Long: `Token makes a worker of an external provider and prints its id, the token that its
agent registers with (once, and soon), and the address to dial. Put the token into a
file that only the agent can read; it is never an argument of a program.`,
		Example: `  hodei worker token --provider lab
  hodei worker token --provider lab -o json | jq -r .token > token`,
		Args: none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if provider == "" {
				return Usage("--provider is missing: the name of an external provider; see `hodei provider list`")
			}
			if err := checkDuration("--ttl", ttl); err != nil {
				return err
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.providers.IssueWorkerToken(ctx, &provisionerv1.IssueWorkerTokenRequest{Provider: provider, Ttl: ttl})
			if err != nil {
				return err
			}
			return a.token(resp)
		},
	}
	cmd.Flags().StringVar(&provider, "provider", "", "`NAME` or id of the external provider")
	cmd.Flags().StringVar(&ttl, "ttl", "", "the token is good for `DURATION`, such as 10m; default: 5m")
	return cmd
}

func (a *app) token(t *provisionerv1.IssueWorkerTokenResponse) error {
	if a.json() {
		return render.Object(a.out, t)
	}
	var s render.Sheet
	s.Add("worker", "%s", t.GetWorkerId())
	s.Add("token", "%s", t.GetToken())
	s.Add("address", "%s", t.GetAgentAddress())
	s.Add("expires", "%s", render.Time(t.GetExpiresAt()))
	if err := s.Print(a.out); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "put the token into a file and start the agent where the worker is to be:\n"+
		"  hodei-agent --server %s --worker %s --token-file FILE\n", t.GetAgentAddress(), t.GetWorkerId())
	return nil
}
