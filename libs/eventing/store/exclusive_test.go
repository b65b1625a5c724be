package store_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
)

// The holder's session is ended: its context ends, it says so, and the standby
// takes over.
func TestExclusiveLost(t *testing.T) {
	t.Parallel()
	url := eventingtest.MigratedPostgres(t)
	a, b := open(t, store.Config{URL: url, Name: "a"}), open(t, store.Config{URL: url, Name: "b"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	held, waits := make(chan struct{}), make(chan struct{})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		first <- a.Exclusive(ctx, "role", nil, func(ctx context.Context) error {
			close(held)
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	<-held
	go func() {
		second <- b.Exclusive(ctx, "role", func(error) { close(waits) }, func(context.Context) error { return nil })
	}()
	<-waits
	execute(t, b, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'a role'")
	err := <-first
	var lost *store.LostError
	if !errors.As(err, &lost) || lost.Name != "role" || !errors.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want a lost role", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the standby: %v", err)
	}
}

// A holder that is paused pings no more: the server ends its session, and the
// standby takes over.
func TestExclusivePaused(t *testing.T) {
	t.Parallel()
	url := eventingtest.MigratedPostgres(t)
	s := open(t, store.Config{URL: url})
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["idle_session_timeout"] = "5000"
	paused, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = paused.Close(context.Background()) }() // the server closed it
	if _, err := paused.Exec(t.Context(), "SELECT pg_advisory_lock($1, hashtext($2))", 0x6864, "role"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	waited := false
	if err := s.Exclusive(ctx, "role", func(err error) { waited = err == nil }, func(context.Context) error { return nil }); err != nil || !waited {
		t.Errorf("waited: %t, %v", waited, err)
	}
}

// fn's own error is not lost where the role is lost as well.
func TestExclusiveReturnsBoth(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{URL: eventingtest.MigratedPostgres(t), Name: "c"})
	broken := errors.New("broken")
	err := s.Exclusive(t.Context(), "role", nil, func(ctx context.Context) error {
		execute(t, s, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'c role'")
		<-ctx.Done()
		return broken
	})
	if !errors.Is(err, broken) || !errors.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want both", err)
	}
}
