package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
)

// letterFlags select dead letters.
type letterFlags struct {
	service, eventType, aggregate, correlation, fingerprint, since, until string
}

func (f *letterFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.service, "service", "", "only those of this `SERVICE`")
	flags.StringVar(&f.eventType, "type", "", "only events of this `TYPE`")
	flags.StringVar(&f.aggregate, "aggregate", "", "only events of this `AGGREGATE`, such as job/ID")
	flags.StringVar(&f.correlation, "correlation-id", "", "only events with this correlation `ID`")
	flags.StringVar(&f.fingerprint, "fingerprint", "", "only errors of this cause, as --group shows them")
	flags.StringVar(&f.since, "since", "", "only those after this `TIME`, RFC 3339 or how long ago, such as 1h")
	flags.StringVar(&f.until, "until", "", "only those before this `TIME`")
}

func (f *letterFlags) read(a *app, ids []string) (*auditv1.DeadLetterFilter, error) {
	since, err := moment("--since", f.since, a.now())
	if err != nil {
		return nil, err
	}
	until, err := moment("--until", f.until, a.now())
	if err != nil {
		return nil, err
	}
	return &auditv1.DeadLetterFilter{
		Ids: ids, Service: f.service, Type: f.eventType, Aggregate: f.aggregate, CorrelationId: f.correlation, Fingerprint: f.fingerprint,
		Since: since, Until: until,
	}, nil
}

// named reports whether anything is selected.
func (f *letterFlags) named(ids []string) bool { return len(ids) > 0 || *f != letterFlags{} }

// letterGroup is the letters of one cause.
type letterGroup struct {
	Fingerprint string    `json:"fingerprint"`
	Count       int       `json:"count"`
	Service     string    `json:"service"`
	Type        string    `json:"type"`
	FirstAt     time.Time `json:"first_at"`
	LastAt      time.Time `json:"last_at"`
	Example     string    `json:"example"`
	Error       string    `json:"error"`
	last        *auditv1.DeadLetter
}

// groupLetters groups by fingerprint, in the order of each group's first letter.
func groupLetters(letters []*auditv1.DeadLetter) []*letterGroup {
	groups, index := []*letterGroup{}, map[string]*letterGroup{}
	for _, d := range letters {
		g := index[d.GetFingerprint()]
		if g == nil {
			g = &letterGroup{Fingerprint: d.GetFingerprint(), Service: d.GetService(), Type: d.GetEvent().GetType(), FirstAt: d.GetFirstAt().AsTime(), last: d}
			index[d.GetFingerprint()] = g
			groups = append(groups, g)
		}
		g.Count++
		if at := d.GetFirstAt().AsTime(); at.Before(g.FirstAt) {
			g.FirstAt = at
		}
		if !d.GetLastAt().AsTime().Before(g.last.GetLastAt().AsTime()) {
			g.last = d
		}
		g.LastAt, g.Example, g.Error = g.last.GetLastAt().AsTime(), g.last.GetId(), g.last.GetError()
	}
	return groups
}

func (a *app) deadLetterGroups(letters []*auditv1.DeadLetter) error {
	groups := groupLetters(letters)
	if a.json() {
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(groups)
	}
	t := render.NewTable(a.out, "FINGERPRINT", "COUNT", "SERVICE", "EVENT", "LAST", "EXAMPLE", "ERROR")
	for _, g := range groups {
		t.Add(g.Fingerprint, fmt.Sprint(g.Count), g.Service, g.Type, render.Age(a.now(), g.last.GetLastAt()), g.Example, g.Error)
	}
	return t.Flush()
}

func (a *app) deadLetterReplayCommand() *cobra.Command {
	req, f := &auditv1.ReplayDeadLettersRequest{}, letterFlags{}
	cmd := &cobra.Command{
		Use:   "replay [ID...]",
		Short: "send events back to the services that could not handle them",
		Long: `Replay has the one consumer that failed handle the event again, and then what waited
behind it, in order; other services see nothing of it. It waits for each outcome. A service
that is down replays when it is up. Of one aggregate a later letter is replayed only after
an earlier one. It ends with 1 where one failed again, was skipped or not answered.`,
		Example: "  hodei dlq replay 3f2a\n  hodei dlq replay --fingerprint 9c0ffee12345 --dry-run\n  hodei dlq replay --service scheduler --rate 10",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if !req.GetAll() && !f.named(ids) {
				return Usage("which dead letters? Give IDs or filters, or --all")
			}
			return a.replayLetters(cmd, req, &f, ids)
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&req.All, "all", false, "replay all open dead letters")
	flags.BoolVar(&req.DryRun, "dry-run", false, "only print what would be replayed")
	flags.BoolVar(&req.NoWait, "no-wait", false, "do not wait for the outcome")
	flags.Float64Var(&req.Rate, "rate", 0, "at most `N` a second; 0 = no limit")
	flags.StringVar(&req.Reason, "reason", "", "why, for the audit log")
	return cmd
}

func (a *app) deadLetterEditCommand() *cobra.Command {
	req := &auditv1.ReplayDeadLettersRequest{}
	var file string
	cmd := &cobra.Command{
		Use:   "edit ID",
		Short: "replay one event with corrected data",
		Long: `Edit replays one dead letter with the JSON of a file in place of the event's data. The log is
not changed: the edited replay is an event of its own that names the letter, and a rebuild
takes it again. The data must have the form of the event's type. The audit log keeps events
as they were, so an edited replay to audit is refused. Begin with the data that
` + "`hodei dlq show ID`" + ` prints.`,
		Example: "  hodei dlq edit 3f2a --file corrected.json --reason 'the exit code was text'\n  jq '.exit_code=1' data.json | hodei dlq edit 3f2a --file -",
		Args:    args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, ids []string) error {
			var err error
			switch file {
			case "":
				return Usage("--file is missing: the corrected data, or - for standard input")
			case "-":
				req.Data, err = io.ReadAll(cmd.InOrStdin())
			default:
				req.Data, err = os.ReadFile(file)
			}
			if err != nil {
				return err
			}
			if len(req.GetData()) == 0 {
				return Usage("--file %s is empty", file)
			}
			return a.replayLetters(cmd, req, &letterFlags{}, ids)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "file", "", "the corrected data as JSON in this `FILE`; - is standard input")
	flags.BoolVar(&req.DryRun, "dry-run", false, "only check the data")
	flags.BoolVar(&req.NoWait, "no-wait", false, "do not wait for the outcome")
	flags.StringVar(&req.Reason, "reason", "", "why, for the audit log")
	return cmd
}

func (a *app) replayLetters(cmd *cobra.Command, req *auditv1.ReplayDeadLettersRequest, f *letterFlags, ids []string) (err error) {
	if req.Filter, err = f.read(a, ids); err != nil {
		return err
	}
	ctx, r, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	stream, err := r.dead.ReplayDeadLetters(ctx, req)
	if err != nil {
		return err
	}
	return a.outcomes(func() (*auditv1.DeadLetterOutcome, error) { m, err := stream.Recv(); return m.GetOutcome(), err })
}

func (a *app) deadLetterDiscardCommand() *cobra.Command {
	req, f := &auditv1.DiscardDeadLettersRequest{}, letterFlags{}
	cmd := &cobra.Command{
		Use:   "discard [ID...]",
		Short: "give events up: their service will not handle them",
		Long: `Discard settles dead letters for good: the service passes over these events, also when it
rebuilds. What waits behind them is handled, or, with --with-parked, given up as well: each of
those gets a dead letter of its own that names this decision. The events stay in the log.`,
		Example: "  hodei dlq discard 3f2a --reason 'a job of last year'\n  hodei dlq discard --service relay --all",
		RunE: func(cmd *cobra.Command, ids []string) (err error) {
			if !req.GetAll() && !f.named(ids) {
				return Usage("which dead letters? Give IDs or filters, or --all")
			}
			if req.Filter, err = f.read(a, ids); err != nil {
				return err
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			stream, err := r.dead.DiscardDeadLetters(ctx, req)
			if err != nil {
				return err
			}
			return a.outcomes(func() (*auditv1.DeadLetterOutcome, error) { m, err := stream.Recv(); return m.GetOutcome(), err })
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&req.All, "all", false, "discard all open dead letters that the filters leave")
	flags.BoolVar(&req.WithParked, "with-parked", false, "give up what waits behind them as well")
	flags.BoolVar(&req.DryRun, "dry-run", false, "only print what would be discarded")
	flags.Float64Var(&req.Rate, "rate", 0, "at most `N` a second; 0 = no limit")
	flags.StringVar(&req.Reason, "reason", "", "why, for the audit log")
	return cmd
}

// outcomes prints what becomes of each letter as it is known.
func (a *app) outcomes(next func() (*auditv1.DeadLetterOutcome, error)) error {
	array := render.NewArray(a.out)
	n, bad := 0, 0
	for {
		o, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n++
		switch o.GetResult() {
		case "FAILED_AGAIN", "UNANSWERED", "SKIPPED":
			bad++
		}
		if a.json() {
			if err := array.Add(o); err != nil {
				return err
			}
			continue
		}
		e := o.GetDeadLetter().GetEvent()
		if _, err := fmt.Fprintf(a.out, "%-14s %s %s %s %s (%d/%d)\n", o.GetResult(), o.GetDeadLetter().GetId(), render.Plain(e.GetType()),
			render.Plain(e.GetAggregate()), render.Plain(o.GetDetail()), o.GetDone(), o.GetTotal()); err != nil {
			return err
		}
	}
	if a.json() {
		if err := array.Close(); err != nil {
			return err
		}
	} else if n == 0 {
		a.note("no dead letters match")
	}
	if bad > 0 {
		a.note("%d of %d are not settled; see `hodei dlq list`", bad, n)
		return exitError(exitFailed)
	}
	return nil
}
