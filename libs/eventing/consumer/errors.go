package consumer

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/store"
)

type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// Permanent marks an error that will stay however often the event is tried: the
// event is dead-lettered at once. nil stays nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanentError{err}
}

// IsPermanent reports whether err was marked by [Permanent].
func IsPermanent(err error) bool {
	var p permanentError
	return errors.As(err, &p)
}

type stopError struct{ error }

func (e stopError) Unwrap() error { return e.error }

// Stop marks an error that ends the consumer: Run returns it, nothing is
// acknowledged. It is for a handler that finds that it must not go on at all,
// such as one that another instance has replaced. nil stays nil.
func Stop(err error) error {
	if err == nil {
		return nil
	}
	return stopError{err}
}

func isStop(err error) bool {
	var s stopError
	return errors.As(err, &s)
}

// Transient reports whether err says that something else is away, or was quicker,
// and not that the event is bad: it is retried for ever. That is fault.Unavailable,
// an end of time, a lost or refused connection, Postgres's own classes of the kind,
// and a [*store.ConflictError]: whoever handles the event again reads the stream
// anew and decides on what it is now. Any other fault.Conflict is judged as any
// other error.
func Transient(err error) bool {
	if err == nil || IsPermanent(err) || isStop(err) {
		return false
	}
	if _, conflict := errors.AsType[*store.ConflictError](err); conflict {
		return true
	}
	for _, target := range []error{
		fault.Unavailable, context.DeadlineExceeded, context.Canceled,
		nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrDisconnected, nats.ErrNoServers,
		nats.ErrConnectionReconnecting, nats.ErrReconnectBufExceeded, jetstream.ErrNoStreamResponse,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return store.IsAway(err)
}
