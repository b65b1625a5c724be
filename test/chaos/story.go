package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// maxStories bounds how many broken aggregates are told of.
const maxStories = 3

var aggregateRE = regexp.MustCompile(`(job|worker)/([0-9a-f-]{36})`)

// story tells of the first broken aggregates: their events and those of their workers,
// what their jobs wrote into the journal, and the faults of that time, in order.
func story(ctx context.Context, p *platform, faults []*injected, v verdict) string {
	var ids []string
	for _, f := range v.findings() {
		if m := aggregateRE.FindStringSubmatch(f); m != nil && !slices.Contains(ids, m[2]) && len(ids) < maxStories {
			ids = append(ids, m[2])
		}
	}
	var b strings.Builder
	for _, id := range ids {
		lines, err := tell(ctx, p, faults, id)
		if err != nil {
			fmt.Fprintf(&b, "--- %s: %v\n", id, err)
			continue
		}
		fmt.Fprintf(&b, "--- the story of %s\n", id)
		for _, l := range lines {
			fmt.Fprintf(&b, "%s  %s\n", l.at.Format(clock), l.text)
		}
	}
	return b.String()
}

type line struct {
	at   time.Time
	text string
}

func tell(ctx context.Context, p *platform, faults []*injected, id string) ([]line, error) {
	db, err := pgx.Connect(ctx, p.database())
	if err != nil {
		return nil, err
	}
	defer db.Close(context.WithoutCancel(ctx))
	rows, err := db.Query(ctx, `with own as (select * from hodei.events where stream_id = $1),
		workers as (select distinct (data->>'worker_id')::uuid id from own where data->>'worker_id' <> '')
		select occurred_at, position || ' ' || type || ' ' || stream_type || '/' || stream_id || ' v' || version || ' by ' || source || ' ' || left(data::text, 260)
		from hodei.events where stream_id = $1 or stream_id in (select id from workers) order by position`, id)
	if err != nil {
		return nil, err
	}
	lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l line, err error) {
		err = row.Scan(&l.at, &l.text)
		return l, err
	})
	if err != nil || len(lines) == 0 {
		return lines, err
	}
	first, last := lines[0].at.Add(-5*time.Second), lines[len(lines)-1].at.Add(30*time.Second)
	entries, err := p.journal.read()
	if err != nil {
		return nil, err
	}
	for _, e := range entries[id] {
		lines = append(lines, line{e.At, fmt.Sprintf("JOURNAL attempt %d (pid %d): %s %s code %d", e.Attempt, e.PID, e.What, e.Other, e.Code)})
	}
	for _, f := range faults {
		if f.healed.After(first) && f.began.Before(last) {
			lines = append(lines, line{f.began, "FAULT " + f.String()}, line{f.healed, "HEALED " + f.mishap.String()})
		}
	}
	slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
	return lines, nil
}
