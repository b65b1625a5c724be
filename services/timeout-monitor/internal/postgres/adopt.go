package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"hodei.dev/services/timeout-monitor/core"
)

// page is how many deadlines are computed anew in one transaction.
const page = 5000

// Adopt makes the stored deadlines follow from these rules: where they were
// computed by others, all are computed anew, without a look at the log. Nobody else
// writes meanwhile. After a failure it is repeated from the beginning.
func (d *Deadlines) Adopt(ctx context.Context, rules core.Rules) error {
	want, err := json.Marshal(rules)
	if err != nil {
		return fmt.Errorf("encode the rules: %w", err)
	}
	var have string
	err = d.pool.QueryRow(ctx, `SELECT rules::text FROM timeout_monitor.adopted`).Scan(&have)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read which rules the deadlines follow: %w", err)
	}
	if have == string(want) {
		return nil
	}
	for after := "00000000-0000-0000-0000-000000000000"; after != ""; {
		err := pgx.BeginFunc(ctx, d.pool, func(tx pgx.Tx) (err error) {
			after, err = recompute(ctx, tx, rules, after)
			return err
		})
		if err != nil {
			return fmt.Errorf("compute the deadlines anew: %w", err)
		}
	}
	_, err = d.pool.Exec(ctx, `INSERT INTO timeout_monitor.adopted (one, rules) VALUES (true, $1)
		ON CONFLICT (one) DO UPDATE SET rules = excluded.rules, adopted_at = now()`, string(want))
	if err != nil {
		return fmt.Errorf("store which rules the deadlines follow: %w", err)
	}
	return nil
}

// recompute does one page and returns its last id; empty at the end.
func recompute(ctx context.Context, tx pgx.Tx, rules core.Rules, after string) (string, error) {
	b := newBatch(rules)
	if err := b.loadProviders(ctx, tx); err != nil {
		return "", err
	}
	rows, err := tx.Query(ctx, `SELECT stream_type, stream_id::text, watch FROM timeout_monitor.deadlines
		WHERE stream_id > $1 ORDER BY stream_id LIMIT $2`, after, page)
	if err != nil {
		return "", err
	}
	if err := b.collect(rows); err != nil {
		return "", err
	}
	if _, err := b.save(ctx, tx); err != nil || len(b.watched) < page {
		return "", err
	}
	last := ""
	for id := range b.watched {
		last = max(last, id)
	}
	return last, nil
}
