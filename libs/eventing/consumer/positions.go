package consumer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is a pool, a connection or a transaction of pgx.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Pooled is a Querier that can also read several rows.
type Pooled interface {
	Querier
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// PositionsDDL makes a service's table of positions in its schema. Each service
// has it in its first migration.
func PositionsDDL(schema string) string {
	table := pgx.Identifier{schema, "positions"}.Sanitize()
	return `create table ` + table + ` (
	name text primary key,
	position bigint not null check (position >= 0),
	updated_at timestamptz not null default now()
);
comment on table ` + table + ` is 'How far each consumer has handled the event log.';
`
}

// Positions is a service's table of positions, for services whose effects are
// not in their own tables. It holds no state.
type Positions struct{ table string }

// NewPositions returns the positions of a schema.
func NewPositions(schema string) Positions {
	return Positions{table: pgx.Identifier{schema, "positions"}.Sanitize()}
}

// Load returns the stored position; 0 where there is none yet.
func (p Positions) Load(ctx context.Context, q Querier, name string) (int64, error) {
	var position int64
	err := q.QueryRow(ctx, `select position from `+p.table+` where name = $1`, name).Scan(&position)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("load the position of %s: %w", name, err)
	}
	return position, nil
}

// Save stores a position. A lower one than is stored changes nothing, so it may
// be called late, seldom or twice.
func (p Positions) Save(ctx context.Context, q Querier, name string, position int64) error {
	_, err := q.Exec(ctx, `insert into `+p.table+` as p (name, position) values ($1, $2)
		on conflict (name) do update set position = excluded.position, updated_at = now() where p.position < excluded.position`, name, position)
	if err != nil {
		return fmt.Errorf("save the position of %s: %w", name, err)
	}
	return nil
}

// Stored is how far one consumer of one service has handled the log.
type Stored struct {
	// Schema is the service's, Name the consumer's.
	Schema, Name string
	Position     int64
	// UpdatedAt is when the position last moved.
	UpdatedAt time.Time
}

// AllStored returns the stored positions of all schemas that have a positions
// table, in order of schema and name.
func AllStored(ctx context.Context, q Pooled) ([]Stored, error) {
	var union string
	err := q.QueryRow(ctx, `select coalesce(string_agg(format('select %L, name, position, updated_at from %I.positions', n.nspname, n.nspname), ' union all '), '')
		from pg_class c join pg_namespace n on n.oid = c.relnamespace
		where c.relname = 'positions' and c.relkind = 'r'
		  and has_table_privilege(c.oid, 'select')
		  and (select count(*) from pg_attribute a where a.attrelid = c.oid and a.attname in ('name', 'position', 'updated_at')) = 3`).Scan(&union)
	if err != nil {
		return nil, fmt.Errorf("find the tables of positions: %w", err)
	}
	if union == "" {
		return nil, nil
	}
	rows, err := q.Query(ctx, union+` order by 1, 2`)
	if err != nil {
		return nil, fmt.Errorf("read the positions: %w", err)
	}
	stored, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Stored])
	if err != nil {
		return nil, fmt.Errorf("read the positions: %w", err)
	}
	return stored, nil
}

// Lowest returns the lowest stored position of all: where a new events stream
// may start without anybody missing anything. It is 0 where nothing is stored.
func Lowest(ctx context.Context, q Pooled) (int64, error) {
	stored, err := AllStored(ctx, q)
	if err != nil || len(stored) == 0 {
		return 0, err
	}
	return slices.MinFunc(stored, func(a, b Stored) int { return cmp.Compare(a.Position, b.Position) }).Position, nil
}
