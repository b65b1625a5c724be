package rpc

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"google.golang.org/grpc/metadata"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/call"
)

// The metadata keys of a call. The correlation id also comes back as a header of
// the response.
const (
	KeyCorrelationID = "hodei-correlation-id"
	KeyActor         = "hodei-actor"
	KeyCausationID   = "hodei-causation-id"
)

// Anonymous is the actor of a caller that names none.
const Anonymous = "user/anonymous"

// maxCallValue is the most bytes that a value of a call may have.
const maxCallValue = 128

// Call is who asked and under which correlation id; see package call.
type Call = call.Call

// WithCall returns a context whose calls carry c.
func WithCall(ctx context.Context, c Call) context.Context { return call.With(ctx, c) }

// CallFrom returns the call of the context. In a handler the correlation id and
// the actor are never empty.
func CallFrom(ctx context.Context) Call { return call.From(ctx) }

// NewCorrelationID makes a correlation id: a UUID version 7, so that ids sort by time.
func NewCorrelationID() string { return uuid.Must(uuid.NewV7()).String() }

// ValidateActor returns a fault.Invalid error unless the actor has the form
// user/..., service/... or worker/... and at most 128 printable ASCII characters.
func ValidateActor(actor string) error {
	kind, name, _ := strings.Cut(actor, "/")
	if (kind != "user" && kind != "service" && kind != "worker") || name == "" || !printable(actor) {
		return fault.New(fault.Invalid, "an actor must have the form user/NAME, service/NAME or worker/ID and at most %d printable ASCII characters", maxCallValue)
	}
	return nil
}

// ValidateCorrelationID returns a fault.Invalid error unless the id has 1 to 128
// printable ASCII characters without a space. It is the rule for causation ids too.
func ValidateCorrelationID(id string) error {
	if id == "" || strings.Contains(id, " ") || !printable(id) {
		return fault.New(fault.Invalid, "must have 1 to %d printable ASCII characters and no space", maxCallValue)
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= maxCallValue
}

// incoming is the call that the metadata of a request describe, completed; it
// names every key that is malformed.
func incoming(ctx context.Context) (Call, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	var wrong fault.Fields
	read := func(key string, check func(string) error) string {
		values := md.Get(key)
		switch {
		case len(values) == 0:
			return ""
		case len(values) > 1:
			wrong.Add(key, "is given %d times", len(values))
		default:
			if err := check(values[0]); err != nil {
				wrong.Add(key, "%s", err)
			}
			return values[0]
		}
		return ""
	}
	c := Call{
		CorrelationID: read(KeyCorrelationID, ValidateCorrelationID),
		Actor:         read(KeyActor, ValidateActor),
		CausationID:   read(KeyCausationID, ValidateCorrelationID),
	}
	if err := wrong.Err("the metadata"); err != nil {
		return Call{}, fmt.Errorf("reading the call: %w", err)
	}
	if c.CorrelationID == "" {
		c.CorrelationID = NewCorrelationID()
	}
	if c.Actor == "" {
		c.Actor = Anonymous
	}
	return c, nil
}

// outgoing puts the call of the context on the metadata of a request.
func outgoing(ctx context.Context) context.Context {
	c := CallFrom(ctx)
	if c == (Call{}) {
		return ctx
	}
	md, ok := metadata.FromOutgoingContext(ctx) // a copy
	if !ok {
		md = metadata.MD{}
	}
	for key, value := range map[string]string{KeyCorrelationID: c.CorrelationID, KeyActor: c.Actor, KeyCausationID: c.CausationID} {
		if value != "" {
			md.Set(key, value)
		}
	}
	return metadata.NewOutgoingContext(ctx, md)
}
