package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
)

func (a *app) deadLetterCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use: "dlq", Short: "see and settle the events that a service could not handle",
		Long: `A dead letter is an event that a service gave up on. It holds nothing else up, except,
for a list, later events of the same job or worker, which wait behind it. The event itself
stays in the log and is never changed. IDs may be given by their first digits.`,
		Example: "  hodei dlq list --group\n  hodei dlq show 3f2a\n  hodei dlq replay --fingerprint 9c0ffee12345 --dry-run",
	})
	cmd.AddCommand(a.deadLetterListCommand(), a.deadLetterShowCommand(), a.deadLetterReplayCommand(), a.deadLetterEditCommand(), a.deadLetterDiscardCommand())
	return cmd
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (a *app) deadLetterListCommand() *cobra.Command {
	req := &auditv1.ListDeadLettersRequest{}
	var f letterFlags
	var grouped bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list dead letters in the order of the log",
		Long:    "List prints the events that a service gave up on, with their errors. They hold nothing else up; `hodei dlq show` prints one in full.",
		Example: "  hodei dlq list\n  hodei dlq list --group\n  hodei dlq list --service audit --since 1h -o json",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.read(a, nil)
			if err != nil {
				return err
			}
			if req.GetLimit() < 1 {
				return Usage("--limit %d: at least 1", req.GetLimit())
			}
			req.Service, req.Type, req.Aggregate, req.CorrelationId = filter.GetService(), filter.GetType(), filter.GetAggregate(), filter.GetCorrelationId()
			req.Since, req.Until, req.Fingerprint = filter.GetSince(), filter.GetUntil(), filter.GetFingerprint()
			if grouped && !cmd.Flags().Changed("limit") {
				req.Limit = 1000
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.dead.ListDeadLetters(ctx, req)
			if err != nil {
				return err
			}
			if grouped {
				err = a.deadLetterGroups(resp.GetDeadLetters())
			} else {
				err = a.deadLetters(resp.GetDeadLetters())
			}
			if err == nil {
				a.noteCounts(resp.GetCounts(), len(resp.GetDeadLetters()))
			}
			return err
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&grouped, "group", false, "group them by the cause of their errors")
	flags.BoolVar(&req.Resolved, "resolved", false, "also those that were replayed or discarded")
	flags.Int32Var(&req.Limit, "limit", 100, "print at most the newest `N`; with --group, of which to take 1000")
	return cmd
}

func (a *app) deadLetters(letters []*auditv1.DeadLetter) error {
	l := a.newList("ID", "STATE", "SERVICE", "EVENT", "AGGREGATE", "TRIES", "LAST", "ERROR")
	for _, d := range letters {
		err := l.add(d, func() []string {
			return []string{
				d.GetId(), d.GetState(), d.GetService(), d.GetEvent().GetType(), d.GetEvent().GetAggregate(), fmt.Sprint(d.GetDeliveries()),
				render.Age(a.now(), d.GetLastAt()), d.GetError(),
			}
		})
		if err != nil {
			return err
		}
	}
	return l.end("no dead letters", false)
}

// noteCounts tells of dead letters that were not printed.
func (a *app) noteCounts(counts map[string]int64, printed int) {
	total := int64(0)
	for _, n := range counts {
		total += n
	}
	if total <= int64(printed) {
		return
	}
	a.note("%d in all: %s", total, figures(counts))
}

func (a *app) deadLetterShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show ID",
		Short:   "print one dead letter: its event, its error and its headers",
		Example: "  hodei dlq show 3f2a\n  hodei dlq show 3f2a -o json",
		Args:    args(1, 1, "ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.dead.GetDeadLetter(ctx, &auditv1.GetDeadLetterRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp)
			}
			return a.deadLetter(resp)
		},
	}
}

func (a *app) deadLetter(m *auditv1.GetDeadLetterResponse) error {
	now, d, e := a.now(), m.GetDeadLetter(), m.GetDeadLetter().GetEvent()
	var s render.Sheet
	s.Add("id", "%s", d.GetId())
	s.Add("service", "%s", d.GetService())
	s.Add("consumer", "%s", d.GetConsumer())
	s.Add("state", "%s", d.GetState())
	s.Add("kind", "%s", d.GetKind())
	s.Add("error", "%s", d.GetError())
	s.Add("fingerprint", "%s", d.GetFingerprint())
	s.Add("replays", "%d", d.GetReplays())
	if d.GetBy() != "" {
		s.Add("decided by", "%s %s", d.GetBy(), d.GetReason())
	}
	if len(d.GetEdited()) > 0 {
		s.Add("edited", "%s", string(d.GetEdited()))
	}
	s.Add("deliveries", "%d", d.GetDeliveries())
	s.Add("first", "%s", since(now, d.GetFirstAt()))
	s.Add("last", "%s", since(now, d.GetLastAt()))
	if e != nil {
		s.Add("event", "%s v%d (%s)", e.GetType(), e.GetVersion(), e.GetId())
		s.Add("aggregate", "%s", e.GetAggregate())
		s.Add("position", "%d", e.GetPosition())
		s.Add("actor", "%s", e.GetActor())
		s.Add("correlation", "%s", e.GetCorrelationId())
	}
	for _, k := range sortedKeys(m.GetHeaders()) {
		s.Add("header "+render.Plain(k), "%s", m.GetHeaders()[k])
	}
	if err := s.Print(a.out); err != nil {
		return err
	}
	if json.Valid(m.GetRaw()) {
		return render.Raw(a.out, m.GetRaw())
	}
	_, err := fmt.Fprintf(a.out, "%d bytes that are not JSON; -o json has them in base64\n", len(m.GetRaw()))
	return err
}
