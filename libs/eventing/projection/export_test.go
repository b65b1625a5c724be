package projection

import (
	"context"

	"hodei.dev/libs/eventing/event"
)

// Deliver hands events over as the consumer does, from where the projection stands.
func (p *Projection) Deliver(ctx context.Context, events ...event.Event) error {
	if _, err := p.load(ctx); err != nil {
		return err
	}
	return p.handle(ctx, events)
}
