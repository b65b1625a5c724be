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
		Use: "dlq", Short: "see the events that a service could not handle",
		Example: "  hodei dlq list\n  hodei dlq show dispatcher/17",
	})
	cmd.AddCommand(a.deadLetterListCommand(), a.deadLetterShowCommand())
	return cmd
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (a *app) deadLetterListCommand() *cobra.Command {
	req := &auditv1.ListDeadLettersRequest{}
	var since string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "list dead letters, service by service",
		Long:    "List prints the events that a service gave up on, with their errors. They hold nothing else up; `hodei dlq show` prints one in full.",
		Example: "  hodei dlq list\n  hodei dlq list --service audit --since 1h -o json",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Since, err = moment("--since", since, a.now()); err != nil {
				return err
			}
			if req.GetLimit() < 1 {
				return Usage("--limit %d: at least 1", req.GetLimit())
			}
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.dead.ListDeadLetters(ctx, req)
			if err != nil {
				return err
			}
			l := a.newList("ID", "EVENT", "AGGREGATE", "TRIES", "LAST", "ERROR")
			for _, d := range resp.GetDeadLetters() {
				err := l.add(d, func() []string {
					return []string{
						d.GetId(), d.GetEvent().GetType(), d.GetEvent().GetAggregate(), fmt.Sprint(d.GetDeliveries()),
						render.Age(a.now(), d.GetLastAt()), d.GetError(),
					}
				})
				if err != nil {
					return err
				}
			}
			if err := l.end("no dead letters", false); err != nil {
				return err
			}
			a.noteCounts(resp.GetCounts(), len(resp.GetDeadLetters()))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Service, "service", "", "only those of this `SERVICE`")
	flags.StringVar(&req.Type, "type", "", "only events of this `TYPE`")
	flags.StringVar(&since, "since", "", "only those after this `TIME`, RFC 3339 or how long ago, such as 1h")
	flags.Int32Var(&req.Limit, "limit", 100, "print at most `N`")
	return cmd
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
		Example: "  hodei dlq show dispatcher/17\n  hodei dlq show dispatcher/17 -o json",
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
	s.Add("error", "%s", d.GetError())
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
