// Package call is who asked and under which correlation id, as values of a
// context. It is the one place that rpc fills, event handlers fill and logs
// read, so that none of them depends on another. It checks nothing: the edges do.
package call

import "context"

// Call is what follows a request through every service, the worker and back.
type Call struct {
	// CorrelationID ties together everything that one request led to. Empty where
	// no request is known; at the edge one is made.
	CorrelationID string
	// Actor is who is responsible: "user/...", "service/..." or "worker/...".
	Actor string
	// CausationID is the event or command that led to this one; may be empty.
	CausationID string
}

type key struct{}

// With returns a context that carries c, whole: it replaces what was there.
func With(ctx context.Context, c Call) context.Context {
	return context.WithValue(ctx, key{}, c)
}

// From returns the call of the context, the zero Call where there is none.
func From(ctx context.Context) Call {
	c, _ := ctx.Value(key{}).(Call)
	return c
}
