package postgres_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/services/audit/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// What one event costs to keep, in batches as they come under load.
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
	position := int64(0)
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
	b.ReportMetric(float64(position)/b.Elapsed().Seconds(), "events/s")
}
