package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/libs/domain/fault"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
)

// secondLook is how long after the first the services are asked again, to tell who
// is behind and catches up from who stands still.
const secondLook = 2 * time.Second

// doctorFlags say how thorough the doctor is, and what it may do.
type doctorFlags struct {
	quick, newEpoch, yes, dryRun bool
	limit                        int32
}

func (a *app) doctorCommand() *cobra.Command {
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "examine the whole platform: is anything lost, stuck or behind, and what to do",
		Long: `Doctor compares the event log in Postgres with the events stream, position by position (id and digest), every
aggregate's current state with its events, and how far every consumer is; it looks for stuck jobs and workers, dead
letters, open breakers and services that are not ready. It changes nothing. A full comparison reads the whole log:
seconds for a million events; --quick compares samples.

Where Postgres was restored without its last events, the stream has events that the log does not: nothing is
published until somebody decides. --new-epoch goes on with the log: the stream is given up and made anew from it, which is
recorded under your name. --dry-run says what that would do.

Exit codes: 0 all is well; 1 something is off; 3 something could not be asked, and nothing else is off.`,
		Example: "  hodei doctor\n  hodei doctor --quick -o json | jq '.checks[] | select(.verdict != \"ok\")'\n  hodei doctor --new-epoch --dry-run",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (f.yes || f.dryRun) && !f.newEpoch {
				return Usage("--yes and --dry-run are about --new-epoch")
			}
			if f.limit < 1 || f.limit > 10_000 {
				return Usage("--limit %d: from 1 to 10000", f.limit)
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			if f.newEpoch {
				return a.newEpoch(ctx, r, f)
			}
			d, err := a.examine(ctx, r, f)
			if err != nil {
				return err
			}
			return a.diagnosis(d)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.quick, "quick", false, "compare samples instead of everything")
	flags.Int32Var(&f.limit, "limit", 20, "list at most `N` differences; all are counted")
	flags.BoolVar(&f.newEpoch, "new-epoch", false, "have the events stream made anew from the log, where the two contradict each other")
	flags.BoolVar(&f.dryRun, "dry-run", false, "with --new-epoch: say what would be done")
	flags.BoolVarP(&f.yes, "yes", "y", false, "with --new-epoch: do not ask")
	return cmd
}

// examination is all that the doctor was told.
type examination struct {
	// first and second are the services, at two moments.
	first, second []*platformv1.ServiceStatus
	comparison    *relayv1.Comparison
	deadLetters   map[string]int64
	// unasked: what could not be asked, and why.
	unasked map[string]string
}

// examine asks everybody. Only a server that does not answer at all is an error.
func (a *app) examine(ctx context.Context, r *remote, f doctorFlags) (*examination, error) {
	d := &examination{unasked: map[string]string{}, deadLetters: map[string]int64{}}
	began := a.now()
	st, err := r.status.GetStatus(ctx, &platformv1.GetStatusRequest{Examine: true})
	if e, ok := errors.AsType[*fault.Error](err); ok && a.unreachable(e) {
		return nil, err
	}
	d.note("services", err)
	d.first, d.second = st.GetServices(), st.GetServices()
	d.comparison, err = a.compare(ctx, r, f)
	d.note("comparison", err)
	dead, err := r.dead.ListDeadLetters(ctx, &auditv1.ListDeadLettersRequest{Limit: 1})
	d.note(checkDeadLetters, err)
	if err == nil {
		d.deadLetters = dead.GetCounts()
	}
	if behind(d.first) {
		if err := wait(ctx, secondLook-a.now().Sub(began)); err != nil {
			return nil, err
		}
		again, err := r.status.GetStatus(ctx, &platformv1.GetStatusRequest{})
		d.note("services", err)
		if err == nil {
			d.second = again.GetServices()
		}
	}
	return d, ctx.Err()
}

func (d *examination) note(what string, err error) {
	if err != nil {
		d.unasked[what] = err.Error()
	}
}

// behind tells whether any service has something to catch up with.
func behind(services []*platformv1.ServiceStatus) bool {
	for _, s := range services {
		if s.GetLag() > 0 {
			return true
		}
	}
	return false
}

// compare follows a comparison to its end, and tells a terminal how far it is.
func (a *app) compare(ctx context.Context, r *remote, f doctorFlags) (*relayv1.Comparison, error) {
	stream, err := r.completeness.Compare(ctx, &relayv1.CompareRequest{Quick: f.quick, Limit: f.limit})
	if err != nil {
		return nil, err
	}
	shown := false
	defer func() {
		if shown {
			fmt.Fprint(a.err, "\r\033[K")
		}
	}()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.Unavailable, "the comparison ended before its end")
		}
		if err != nil {
			return nil, err
		}
		c := m.GetComparison()
		if m.GetDone() {
			return c, nil
		}
		if onTerminal(a.err) {
			shown = true
			fmt.Fprintf(a.err, "\r\033[Kcomparing %s: %d of %d", c.GetPhase(), c.GetChecked(), c.GetTotal())
		}
	}
}

// wait returns early, with the reason, where ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
