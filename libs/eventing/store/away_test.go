package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/store"
)

func TestAwayNamesWhatMayComeBack(t *testing.T) {
	_, refused := pgx.Connect(t.Context(), "postgres://nobody@127.0.0.1:1/none?sslmode=disable")
	for name, c := range map[string]struct {
		err  error
		away bool
	}{
		"no server":             {refused, true},
		"a server that starts":  {&pgconn.PgError{Severity: "FATAL", Code: "57P03"}, true},
		"too many connections":  {&pgconn.PgError{Severity: "FATAL", Code: "53300"}, true},
		"a lost connection":     {io.ErrUnexpectedEOF, true},
		"a wrong query":         {&pgconn.PgError{Code: "42703"}, false},
		"no row":                {pgx.ErrNoRows, false},
		"a caller without time": {context.DeadlineExceeded, false},
		"what has a kind":       {fault.New(fault.NotFound, "no such job"), false},
	} {
		t.Run(name, func(t *testing.T) {
			err := store.Away(fmt.Errorf("list: %w", c.err))
			if got := errors.Is(err, fault.Unavailable); got != c.away || !errors.Is(err, c.err) {
				t.Errorf("%v: unavailable %v", err, got)
			}
		})
	}
	if store.Away(nil) != nil {
		t.Error("nil is an error")
	}
}
