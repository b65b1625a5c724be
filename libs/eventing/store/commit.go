package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"hodei.dev/libs/domain/fault"
)

const (
	// giveUpAfter is how long an append is tried again while Postgres is away.
	giveUpAfter = 10 * time.Second
	// attemptTimeout ends one commit that hangs.
	attemptTimeout = 8 * time.Second
	firstBackoff   = 5 * time.Millisecond
	longestBackoff = 500 * time.Millisecond
)

// committer commits what callers queued: one batch after the other, never
// waiting for one to fill. It is one goroutine with one connection.
//
//	batch ─▶ commit ─┬─ done: everybody gets the answer
//	   ▲             ├─ conflict: one read names the losers (and those whose
//	   │             │  events stand already); the rest again
//	   ├─────────────┤
//	   │             ├─ lost or refused for now: wait, the same again. Also after
//	   │             │  an unknown outcome: what was committed then conflicts, and
//	   │             │  the read finds the own event ids
//	   └─────────────┴─ any other error: halves, until the one at fault is alone
type committer struct {
	store    *Store
	onCommit func(int64)
	told     int64 // the last position that onCommit got
	conn     *pgx.Conn
	backoff  time.Duration // of the trouble at present; 0 = none
}

func (c *committer) run() {
	for {
		batch := c.store.queue.next()
		if batch == nil {
			c.disconnect()
			return
		}
		c.settle(batch)
	}
}

// settle brings every append of a batch to its end.
func (c *committer) settle(batch []*pending) {
	work := [][]*pending{batch}
	for len(work) > 0 {
		part := c.alive(work[0])
		work = work[1:]
		if len(part) == 0 {
			continue
		}
		err := c.commit(part)
		switch failure := classify(err); {
		case err == nil:
			c.recovered()
		case failure == failedConflict:
			c.store.metrics.retried(part[0].ctx, "conflict")
			rest, err := c.examine(part)
			if err != nil || len(rest) == len(part) {
				// Nobody's fault any more: what was seen has changed since.
				c.pause(errors.Join(err, errors.New("conflict without a loser")), part)
			}
			work = prepend(work, rest)
		case failure == failedTransient, failure == failedUnknown:
			for _, p := range part {
				p.unsure = p.unsure || failure == failedUnknown
			}
			c.pause(err, part)
			work = prepend(work, part)
		case len(part) == 1:
			part[0].finish(nil, refused(err))
		default:
			c.store.metrics.retried(part[0].ctx, "bisect")
			half := len(part) / 2
			work = prepend(work, part[:half], part[half:])
		}
	}
}

func prepend(work [][]*pending, parts ...[]*pending) [][]*pending {
	return append(parts, work...)
}

// alive ends the appends that are not to be tried again and returns the others.
func (c *committer) alive(part []*pending) []*pending {
	trouble, now := c.store.queue.troubled(), time.Now()
	kept := make([]*pending, 0, len(part))
	for _, p := range part {
		outcome := "nothing was appended"
		if p.unsure {
			outcome = "the outcome is unknown; repeat it with the same event ids"
		}
		switch {
		case p.ctx.Err() != nil:
			p.finish(nil, c.store.ended(p, outcome))
		case trouble != nil && now.After(p.giveUp):
			p.finish(nil, unavailable(trouble, "append ("+outcome+")"))
		default:
			kept = append(kept, p)
		}
	}
	return kept
}

// commit tries one batch once.
func (c *committer) commit(part []*pending) error {
	ctx, cancel := context.WithTimeout(context.Background(), attemptTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return err
	}
	var cols columns
	for _, p := range part {
		cols.add(p)
	}
	var first int64
	var at time.Time
	if err := c.conn.QueryRow(ctx, appendSQL, cols.args()...).Scan(&first, &at); err != nil {
		if classify(err) == failedUnknown {
			c.disconnect()
		}
		return err
	}
	c.store.metrics.batch.Record(ctx, int64(len(cols.eID)))
	at = at.UTC()
	next := first
	for _, p := range part {
		for i := range p.events {
			p.events[i].Position, p.events[i].Time = next, at
			next++
		}
	}
	c.tell(next - 1)
	for _, p := range part {
		p.finish(p.events, nil)
	}
	return nil
}

func (c *committer) tell(position int64) {
	if c.onCommit != nil && position > c.told {
		c.told = position
		c.onCommit(position)
	}
}

func (c *committer) connect(ctx context.Context) error {
	if c.conn != nil && !c.conn.IsClosed() {
		return nil
	}
	conf := c.store.conf.Copy()
	// A session of a connection that was lost must end by itself.
	conf.RuntimeParams["statement_timeout"] = fmt.Sprint(attemptTimeout.Milliseconds())
	conn, err := pgx.ConnectConfig(ctx, conf)
	if err != nil {
		return &connectError{err}
	}
	c.conn = conn
	return nil
}

func (c *committer) disconnect() {
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := c.conn.Close(ctx); err != nil {
		c.store.log.Debug("close the committer's connection", "error", err)
	}
	c.conn = nil
}

// pause waits before another try, longer each time, and says so once.
func (c *committer) pause(err error, part []*pending) {
	if c.backoff == 0 {
		c.backoff = firstBackoff
		c.store.log.Warn("an append is tried again", "error", err, "appends", len(part))
	}
	c.store.metrics.retried(part[0].ctx, "unavailable")
	c.store.queue.setTrouble(err)
	time.Sleep(c.backoff)
	c.backoff = min(2*c.backoff, longestBackoff)
}

func (c *committer) recovered() {
	if c.backoff > 0 {
		c.store.log.Info("appends succeed again")
		c.backoff = 0
		c.store.queue.setTrouble(nil)
	}
}

// connectError is a failure before anything was sent.
type connectError struct{ error }

func (e *connectError) Unwrap() error { return e.error }

// failure is what an error of a commit means for the batch.
type failure int

const (
	failedForGood   failure = iota // this batch will fail again
	failedConflict                 // a version or key is not as expected
	failedTransient                // not committed; worth another try
	failedUnknown                  // perhaps committed: the answer was lost
)

func classify(err error) failure {
	if lost := (*connectError)(nil); errors.As(err, &lost) {
		return failedTransient
	}
	if row := (*pgx.ScanArgError)(nil); errors.As(err, &row) {
		return failedForGood
	}
	pg := (*pgconn.PgError)(nil)
	if !errors.As(err, &pg) {
		return failedUnknown
	}
	if pg.Code == "HD001" {
		return failedConflict
	}
	if pg.Severity == "FATAL" || pg.Severity == "PANIC" {
		return failedUnknown
	}
	switch class := pg.Code[:min(2, len(pg.Code))]; class {
	case "57":
		// query_canceled by statement_timeout or an operator: rolled back.
		return failedTransient
	case "08", "40", "53", "55", "58": // connection, rollback, resources, locks, IO
		return failedTransient
	}
	return failedForGood
}

// refused makes an error that this append alone is to blame for an answer.
func refused(err error) error {
	pg := (*pgconn.PgError)(nil)
	if !errors.As(err, &pg) {
		return fmt.Errorf("append: %w", err)
	}
	switch pg.Code[:min(2, len(pg.Code))] {
	case "22", "23", "54": // data, a constraint, a limit
		return fault.Wrap(fault.Invalid, err, "append is refused by Postgres")
	}
	switch pg.Code {
	case "42501":
		return fault.Wrap(fault.Denied, err, "append").WithCode("POSTGRES_DENIED", "grant the role hodei_service to this user")
	case "42883", "42P01", "3F000":
		return fault.Wrap(fault.Precondition, err, "append").WithCode("SCHEMA_BEHIND", "run `hodei migrate`")
	}
	return fault.Wrap(fault.Internal, err, "append")
}
