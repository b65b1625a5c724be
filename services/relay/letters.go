package relay

import (
	"context"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/service/letters"
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
