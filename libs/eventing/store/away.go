package store

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/jackc/pgx/v5/pgconn"

	"hodei.dev/libs/domain/fault"
)

// Away makes an error of a query that says that Postgres is away, starting or
// overwhelmed a fault.Unavailable; every other error, and one that has a kind
// already, is returned as it is. It is for services' queries on [Store.Pool]; the
// store's own methods do it by themselves.
func Away(err error) error {
	if err == nil || fault.KindOf(err) != fault.Internal || !IsAway(err) {
		return err
	}
	return unavailable(err, "Postgres does not answer")
}

// IsAway reports whether an error of pgx is about the connection or the server's
// state and not about the query: the same query may succeed later. What the
// caller's own context has ended is not.
func IsAway(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return awayState(pg.Code)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || pgconn.SafeToRetry(err) {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// awayState judges Postgres's SQLSTATE codes.
func awayState(code string) bool {
	switch code {
	case "40001", "40P01", "55P03", // serialization, deadlock, lock timeout
		"57014", "57P01", "57P02", "57P03", "57P05", "25P03", // cancelled, shutdown, crash, starting, idle sessions
		"25006": // read only: a standby that is about to become the primary
		return true
	}
	return len(code) == 5 && (code[:2] == "08" || code[:2] == "53" || code[:2] == "58") // connection, resources, system
}
