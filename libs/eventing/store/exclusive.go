package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
)

// exclusiveClass is the first half of the advisory locks of Exclusive; the
// second is the hash of the name.
const exclusiveClass = 0x6864 // "hd"

// The server ends a holder's session that has been silent for sessionTimeout; the
// holder pings, and stops by itself well before that.
const (
	sessionTimeout = 5 * time.Second
	pingEvery      = time.Second
	provenFor      = 4 * time.Second
)

// LostError says that an exclusive role ended because its lock was lost or could
// no longer be proven; it is a fault.Unavailable. Somebody else may have it now.
type LostError struct {
	Name string
	// Err is how it was noticed.
	Err error
}

// Error names the role.
func (e *LostError) Error() string {
	return fmt.Sprintf("the exclusive role %q is lost: %v", e.Name, e.Err)
}

// Unwrap returns how it was noticed.
func (e *LostError) Unwrap() error { return e.Err }

// Is reports whether target is fault.Unavailable.
func (e *LostError) Is(target error) bool { return target == fault.Unavailable }

// Exclusive runs fn while this process alone holds the name, and returns fn's
// error. Until it gets it, it stands by, asks once a second, and survives a
// Postgres that is away; onWait (may be nil) is told so: nil while another process
// holds the name, else why Postgres cannot be asked; each as often as that changes.
//
// fn's context is cancelled as soon as the lock is lost or cannot be proven;
// then fn must return before it has another side effect, and Exclusive returns a
// *LostError: call it again to stand by. A process that was paused may notice
// late, so correctness must rest on versions and sequences, not on this lock.
func (s *Store) Exclusive(ctx context.Context, name string, onWait func(err error), fn func(ctx context.Context) error) error {
	conn, proven, err := s.acquire(ctx, name, onWait)
	if err != nil {
		return err
	}
	held, cancel := context.WithCancelCause(ctx)
	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		if err := keep(held, conn, proven); err != nil {
			cancel(&LostError{Name: name, Err: err})
		}
	}()
	defer func() {
		cancel(context.Canceled)
		<-pinging
		s.release(conn, name)
	}()
	err = fn(held)
	if lost := (*LostError)(nil); errors.As(context.Cause(held), &lost) {
		if err != nil && !errors.Is(err, context.Canceled) {
			lost = &LostError{Name: name, Err: errors.Join(lost.Err, err)}
		}
		return lost
	}
	return err
}

// acquire returns a connection that holds the lock, and when it asked for it. It
// polls: a session that waited inside Postgres would hold back vacuum for as long.
func (s *Store) acquire(ctx context.Context, name string, onWait func(err error)) (conn *pgx.Conn, asked time.Time, err error) {
	conf := s.conf.Copy()
	conf.RuntimeParams["idle_session_timeout"] = fmt.Sprint(sessionTimeout.Milliseconds())
	conf.RuntimeParams["application_name"] += " " + name
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	var said *string // what onWait was told last
	for {
		got, err := false, error(nil)
		if conn == nil || conn.IsClosed() {
			conn, err = pgx.ConnectConfig(ctx, conf)
		}
		asked := time.Now()
		if err == nil {
			got, err = try(ctx, conn, name)
		}
		if got {
			return conn, asked, nil
		}
		if why := fmt.Sprint(err); onWait != nil && ctx.Err() == nil && (said == nil || *said != why) {
			said = &why
			onWait(err)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot ask for an exclusive role", "role", name, "error", err)
		}
		select {
		case <-ctx.Done():
			if conn != nil {
				s.release(conn, name)
			}
			return nil, time.Time{}, fmt.Errorf("wait for the exclusive role %q: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}

func try(ctx context.Context, conn *pgx.Conn, name string) (got bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, provenFor)
	defer cancel()
	err = conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, hashtext($2))", exclusiveClass, name).Scan(&got)
	return got, err
}

// keep pings until ctx ends (nil) or the lock is no longer certain. An answer
// proves the lock for as long after its question as the server waits; one that is read
// later than that, because this process was paused meanwhile, proves nothing.
func keep(ctx context.Context, conn *pgx.Conn, proven time.Time) error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		if late := time.Since(proven); late > provenFor {
			return fault.New(fault.Unavailable, "nothing has proven it for %s", late.Round(time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		asked := time.Now()
		ping, cancel := context.WithDeadline(ctx, proven.Add(provenFor))
		err := conn.Ping(ping)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		proven = asked
	}
}

// release gives the lock back: the server frees it when the session ends, and
// closing waits for nothing, so it is asked first.
func (s *Store) release(conn *pgx.Conn, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if !conn.IsClosed() {
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock_all()"); err != nil {
			s.log.Debug("release an exclusive role", "role", name, "error", err)
		}
	}
	if err := conn.Close(ctx); err != nil {
		s.log.Debug("close the connection of an exclusive role", "role", name, "error", err)
	}
}
