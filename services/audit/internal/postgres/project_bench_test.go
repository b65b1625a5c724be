package postgres_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/services/audit/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// What one event costs to keep, in batches as they come under load: the time and the processor time of the
// service and of its connection's server process, and the space of the table with its indexes.
func BenchmarkApply(b *testing.B) {
	url := eventingtest.Postgres(b)
	if err := migrations.Up(b.Context(), url, postgres.Schema, postgres.Migrations()); err != nil {
		b.Fatal(err)
	}
	conn, err := pgx.Connect(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(b.Context())
	const together = 200
	position, before := int64(0), used(b, conn)
	for b.Loop() {
		events := make([]event.Event, together)
		for i := range events {
			position++
			events[i] = event.Event{
				Meta: event.Meta{Source: "registry", Namespace: "default", CorrelationID: fmt.Sprint("c-", position/6), CausationID: event.NewID(), Actor: "service/registry"},
				ID:   event.NewID(), Type: "JobStatusChanged", Version: 1, Stream: event.Stream{Type: "job", ID: event.NewID()}, StreamVersion: 3,
				Position: position, Time: time.Now(), Data: []byte(`{"from":"ASSIGNED","to":"RUNNING","attempt":1,"reason":"accepted by its worker"}`),
			}
		}
		if err := pgx.BeginFunc(b.Context(), conn, func(tx pgx.Tx) error { return postgres.Apply(b.Context(), tx, events) }); err != nil {
			b.Fatal(err)
		}
	}
	after := used(b, conn)
	b.ReportMetric(float64(position)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((after.service-before.service).Microseconds())/float64(position), "service-µs/event")
	b.ReportMetric(float64((after.postgres-before.postgres).Microseconds())/float64(position), "postgres-µs/event")
	b.ReportMetric(float64(after.bytes-before.bytes)/float64(position), "B/event")
}

// use is what the audit log has taken so far.
type use struct {
	service, postgres time.Duration
	bytes             int64
}

func used(b *testing.B, conn *pgx.Conn) (u use) {
	b.Helper()
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	u.service = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	if err := conn.QueryRow(b.Context(), `select sum(pg_total_relation_size(relid)) from pg_partition_tree('audit.log')`).Scan(&u.bytes); err != nil {
		b.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", conn.PgConn().PID()))
	if err != nil {
		b.Skip("no /proc: ", err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ")
	for _, ticks := range strings.Fields(fields)[11:13] { // utime and stime, see proc(5)
		n, err := strconv.Atoi(ticks)
		if err != nil {
			b.Fatal(err)
		}
		u.postgres += time.Duration(n) * 10 * time.Millisecond
	}
	return u
}
