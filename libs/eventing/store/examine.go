package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"hodei.dev/libs/eventing/event"
)

// seen is what the log says about the streams, keys and events of a batch.
type seen struct {
	streams map[pgtype.UUID]seenStream
	keys    map[keyName]Key
	events  map[pgtype.UUID]seenEvent
}

type seenStream struct {
	streamType string
	version    int
}

type seenEvent struct {
	stream   pgtype.UUID
	version  int
	position int64
	at       time.Time
}

// examine answers those of a batch that cannot succeed any more, and those whose
// events stand already; it returns the others. Versions only grow and keys are
// never given back, so who has lost has lost for good.
func (c *committer) examine(part []*pending) (rest []*pending, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), attemptTimeout)
	defer cancel()
	if err := c.connect(ctx); err != nil {
		return part, err
	}
	found, err := c.look(ctx, part)
	if err != nil {
		c.disconnect()
		return part, err
	}
	for _, p := range part {
		if result, ok := found.earlier(p); ok {
			c.tell(result[len(result)-1].Position)
			p.finish(result, nil)
		} else if err := found.objection(p); err != nil {
			p.finish(nil, err)
		} else {
			rest = append(rest, p)
		}
	}
	return rest, nil
}

// look reads streams and keys first and events last: whoever sees the effect of
// its own earlier commit on the former then finds it among the latter.
func (c *committer) look(ctx context.Context, part []*pending) (*seen, error) {
	var cols columns
	for _, p := range part {
		cols.add(p)
	}
	s := &seen{map[pgtype.UUID]seenStream{}, map[keyName]Key{}, map[pgtype.UUID]seenEvent{}}
	rows, err := c.conn.Query(ctx, `SELECT stream_id, stream_type, version FROM hodei.streams WHERE stream_id = ANY($1)`, cols.sID)
	if err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	var id, stream pgtype.UUID
	var row seenStream
	if _, err := pgx.ForEachRow(rows, []any{&id, &row.streamType, &row.version}, func() error {
		s.streams[id] = row
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read streams: %w", err)
	}
	if err := s.lookKeys(ctx, c.conn, &cols); err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	rows, err = c.conn.Query(ctx, `SELECT event_id, stream_id, version, position, occurred_at FROM hodei.events
		WHERE stream_id = ANY($1) AND event_id = ANY($2)`, cols.sID, cols.eID)
	if err != nil {
		return nil, fmt.Errorf("read own events: %w", err)
	}
	var e seenEvent
	if _, err := pgx.ForEachRow(rows, []any{&id, &stream, &e.version, &e.position, &e.at}, func() error {
		e.stream = stream
		s.events[id] = e
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read own events: %w", err)
	}
	return s, nil
}

func (s *seen) lookKeys(ctx context.Context, conn *pgx.Conn, cols *columns) error {
	if len(cols.kValue) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, `SELECT k.namespace, k.kind, k.value, k.stream_type, k.stream_id, k.digest
		FROM hodei.keys AS k JOIN unnest($1::text[], $2::text[], $3::text[]) AS u (namespace, kind, value) USING (namespace, kind, value)`,
		cols.kNamespace, cols.kKind, cols.kValue)
	if err != nil {
		return err
	}
	keys, err := pgx.CollectRows(rows, scanKey)
	for _, k := range keys {
		s.keys[keyName{k.Namespace, k.Kind, k.Value}] = k
	}
	return err
}

// earlier returns the first answer of an append that stands already.
func (s *seen) earlier(p *pending) ([]event.Event, bool) {
	n := 0
	for i, change := range p.Changes {
		for range change.Events {
			e, ok := s.events[p.ids[n]]
			if !ok || e.stream != p.streams[i] {
				return nil, false
			}
			n++
		}
	}
	for i := range p.events {
		e := s.events[p.ids[i]]
		p.events[i].StreamVersion, p.events[i].Position, p.events[i].Time = e.version, e.position, e.at.UTC()
	}
	return p.events, true
}

// objection returns why an append cannot succeed; nil where nothing speaks
// against it. A taken key comes first: it says who was there before.
func (s *seen) objection(p *pending) error {
	for _, k := range p.Keys {
		if holder, taken := s.keys[keyName{k.Namespace, k.Kind, k.Value}]; taken {
			return &KeyTakenError{Key: holder}
		}
	}
	for i, change := range p.Changes {
		is := s.streams[p.streams[i]]
		if is.version != change.Expected || (is.version > 0 && is.streamType != change.Stream.Type) {
			return &ConflictError{Stream: change.Stream, Expected: change.Expected, Actual: is.version}
		}
	}
	return nil
}
