package app

import (
	"context"
	"sync"
)

// remembered asks for each known provider once. What is not known is asked for
// again: it may be registered meanwhile.
type remembered struct {
	of   Providers
	seen sync.Map // name or id -> struct{}
}

// Known implements Providers.
func (r *remembered) Known(ctx context.Context, nameOrID string) (bool, error) {
	if _, ok := r.seen.Load(nameOrID); ok {
		return true, nil
	}
	known, err := r.of.Known(ctx, nameOrID)
	if known {
		r.seen.Store(nameOrID, struct{}{})
	}
	return known, err
}
