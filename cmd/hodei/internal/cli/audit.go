package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "audit", Short: "ask who did what, when and why",
		Example: "  hodei audit trace 0198c2e1\n  hodei audit search --type JobCancelRequested --since 24h",
	})
	cmd.AddCommand(a.auditSearchCommand(), a.auditTraceCommand(), a.auditCountsCommand())
	return cmd
}

// filterFlags say which events are meant.
type filterFlags struct {
	aggregate, correlationID, actor, namespace, since, until string
	types                                                    []string
}

func (f *filterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.aggregate, "aggregate", "", "only events of this `AGGREGATE`, such as job/ID or worker/ID (or a prefix of the id), or job for all jobs")
	flags.StringVar(&f.correlationID, "correlation-id", "", "only events under this correlation `ID`")
	flags.StringSliceVar(&f.types, "type", nil, "only events of this `TYPE`, such as JobCreated; may be repeated or comma separated")
	flags.StringVar(&f.actor, "actor", "", "only events by this `ACTOR`, such as user/ann, service/registry or worker/ID")
	flags.StringVar(&f.namespace, "namespace", "", "only events of this `NAMESPACE`")
	flags.StringVar(&f.since, "since", "", "only events after this `TIME`, RFC 3339 or how long ago, such as 1h")
	flags.StringVar(&f.until, "until", "", "only events before this `TIME`")
}

func (f *filterFlags) filter(a *app) (*auditv1.EventFilter, error) {
	since, err := moment("--since", f.since, a.now())
	if err != nil {
		return nil, err
	}
	until, err := moment("--until", f.until, a.now())
	if err != nil {
		return nil, err
	}
	return &auditv1.EventFilter{
		CorrelationId: f.correlationID, Types: split(f.types), Actor: f.actor, Aggregate: f.aggregate,
		Namespace: f.namespace, Since: since, Until: until,
	}, nil
}

func (a *app) auditSearchCommand() *cobra.Command {
	var f filterFlags
	var limit int
	var ascending bool
	cmd := &cobra.Command{
		Use:   "search",
		Short: "find events by any combination of what is known of them",
		Long:  "Search prints the events that match everything that is given, newest first. -o json has all of each event, its data included.",
		Example: `  hodei audit search --aggregate job/0198c2e1 --asc
  hodei audit search --actor user/ann --type JobCancelRequested --since 24h --limit 0
  hodei audit search --since 2026-05-01T00:00:00Z --until 2026-05-02T00:00:00Z -o json`,
		Args: none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkLimit(limit); err != nil {
				return err
			}
			filter, err := f.filter(a)
			if err != nil {
				return err
			}
			return a.search(cmd.Context(), &auditv1.SearchEventsRequest{Filter: filter, Ascending: ascending}, limit)
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "print at most `N` events; 0 = all")
	cmd.Flags().BoolVar(&ascending, "asc", false, "oldest first")
	return cmd
}

func (a *app) search(ctx context.Context, req *auditv1.SearchEventsRequest, limit int) error {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	l := a.newList("TIME", "POSITION", "EVENT", "AGGREGATE", "ACTOR", "DETAIL")
	for n := 0; ; {
		req.PageSize = page(limit, n)
		resp, err := r.audit.SearchEvents(ctx, req)
		if err != nil {
			return l.abort(err)
		}
		for _, e := range resp.GetEvents() {
			err := l.add(e, func() []string {
				return []string{stamp(e), fmt.Sprint(e.GetPosition()), e.GetType(), e.GetAggregate(), e.GetActor(), detail(e)}
			})
			if err != nil {
				return err
			}
		}
		n += len(resp.GetEvents())
		if err := l.flush(); err != nil {
			return err
		}
		req.PageToken = resp.GetNextPageToken()
		if req.PageToken == "" || limit > 0 && n >= limit {
			return l.end("no events", req.PageToken != "")
		}
	}
}

func (a *app) auditTraceCommand() *cobra.Command {
	var correlationID string
	cmd := &cobra.Command{
		Use:   "trace JOB | --correlation-id ID",
		Short: "print everything that a job led to, and what caused what",
		Long: `Trace prints all events under a job's correlation id, its workers' included, oldest
first. An event stands below the one that caused it, with the time since the first.`,
		Example:           "  hodei audit trace 0198c2e1\n  hodei audit trace --correlation-id 0198c2e1-7b60-7d3f-b5a0-0f6f1d3c2b1a -o json",
		Args:              args(0, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 0) == (correlationID == "") {
				return Usage("give a JOB or --correlation-id; see `hodei audit trace --help`")
			}
			req := &auditv1.TraceEventsRequest{CorrelationId: correlationID}
			if len(args) > 0 {
				if req.Aggregate = args[0]; !strings.Contains(args[0], "/") {
					req.Aggregate = "job/" + args[0]
				}
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.audit.TraceEvents(ctx, req)
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp)
			}
			return a.trace(resp)
		},
	}
	cmd.Flags().StringVar(&correlationID, "correlation-id", "", "the correlation `ID` to trace, instead of a job's")
	return cmd
}

// trace prints the tree. Depth is shown by indentation, time by columns.
func (a *app) trace(t *auditv1.TraceEventsResponse) error {
	if len(t.GetNodes()) == 0 {
		a.note("no events under correlation id %s", t.GetCorrelationId())
		return nil
	}
	first := earliest(t.GetNodes())
	if _, err := fmt.Fprintf(a.out, "correlation id %s, %d events from %s\n\n", t.GetCorrelationId(), len(t.GetNodes()), stamp(first)); err != nil {
		return err
	}
	table := render.NewTable(a.out, "AFTER", "EVENT", "ACTOR", "AGGREGATE", "DETAIL")
	for _, n := range t.GetNodes() {
		e := n.GetEvent()
		indent := strings.Repeat("  ", int(max(0, min(n.GetDepth(), 40))))
		table.Add(after(first, e), indent+e.GetType(), e.GetActor(), e.GetAggregate(), detail(e))
	}
	return table.Flush()
}

func earliest(nodes []*auditv1.TraceNode) *schedulerv1.Event {
	first := nodes[0].GetEvent()
	for _, n := range nodes {
		if n.GetEvent().GetTime().AsTime().Before(first.GetTime().AsTime()) {
			first = n.GetEvent()
		}
	}
	return first
}

func (a *app) auditCountsCommand() *cobra.Command {
	var f filterFlags
	cmd := &cobra.Command{
		Use:     "counts",
		Short:   "count events by type",
		Example: "  hodei audit counts --since 24h\n  hodei audit counts --aggregate job --namespace web -o json",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter(a)
			if err != nil {
				return err
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.audit.CountEvents(ctx, &auditv1.CountEventsRequest{Filter: filter})
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp)
			}
			t := render.NewTable(a.out, "EVENT", "COUNT")
			for _, k := range sortedKeys(resp.GetCounts()) {
				t.Add(k, fmt.Sprint(resp.GetCounts()[k]))
			}
			t.Add("total", fmt.Sprint(resp.GetTotal()))
			return t.Flush()
		},
	}
	f.add(cmd)
	return cmd
}
