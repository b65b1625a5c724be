package relay

import (
	"context"
	"fmt"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/service/letters"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// keeper keeps a dead letter in the relay's table and in the log: the table holds
// also what is about a letter, the log lets operators see and acknowledge it.
type keeper struct {
	table *relay.PostgresDeadLetters
	log   *letters.Letters
}

// Record implements relay.DeadLetters.
func (k keeper) Record(ctx context.Context, e event.Event, reason string) error {
	if err := k.table.Record(ctx, e, reason); err != nil {
		return err
	}
	return k.log.Unpublishable(ctx, e, reason)
}

// alerts says whose dead letters are an alert. It counts in the log, so every
// replica says the same; the watch records the alerts.
type alerts struct {
	log       letters.Counted
	threshold int64
}

// standing are the consumers whose open dead letters have reached the threshold.
func (a alerts) standing(ctx context.Context, s *platformv1.ServiceStatus) map[letters.Holder]int {
	open, err := letters.NewTally(a.log).Count(ctx)
	if err != nil {
		s.Problems["dead letters"] = err.Error()
	}
	for h, n := range open {
		if int64(n) < a.threshold {
			delete(open, h)
		}
	}
	return open
}

func (a alerts) status(ctx context.Context, s *platformv1.ServiceStatus) {
	for h, n := range a.standing(ctx, s) {
		s.Figures["dead_letter_alerts"]++
		s.Problems["dead letters of "+h.Consumer] = fmt.Sprintf("%d are open, the alert is at %d", n, a.threshold)
	}
}

func (a alerts) examine(ctx context.Context, s *platformv1.ServiceStatus) {
	for h, n := range a.standing(ctx, s) {
		s.Findings = append(s.Findings, &platformv1.Finding{
			Check: "dead letters", Severity: "error", Subject: "consumer " + h.Consumer + " of " + h.Service,
			Problem: fmt.Sprintf("%d are open, the alert is at %d", n, a.threshold),
			Action:  "see the causes: `hodei dlq list --group --service " + h.Service + "`",
		})
	}
}
