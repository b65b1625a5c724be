package postgres_test

import (
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/services/scheduler/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// Pages of a list over a million jobs, first and deep, by filters that match
// nearly all and nearly none.
func BenchmarkListOfAMillion(b *testing.B) {
	url := eventingtest.Postgres(b)
	if err := migrations.Up(b.Context(), url, postgres.Schema, postgres.Migrations()); err != nil {
		b.Fatal(err)
	}
	pool, err := pgxpool.New(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	for _, sql := range []string{
		`INSERT INTO scheduler.jobs SELECT gen_random_uuid(), 'n', CASE WHEN i % 100000 = 7 THEN 'rare' ELSE 'default' END,
		   CASE WHEN i % 200000 = 9 THEN 'RUNNING' WHEN i % 10 = 3 THEN 'FAILED' ELSE 'SUCCEEDED' END, 1, 6, 0, '', '',
		   jsonb_build_object('team', (i % 5)::text, 'run', (i / 10)::text), 'c', 'user/ann', '', '', '[]', NULL, NULL,
		   timestamptz '2026-01-01' + i * interval '1 second', NULL, NULL, NULL, NULL
		 FROM generate_series(1, 1000000) AS i`,
		`ANALYZE scheduler.jobs`,
	} {
		if _, err := pool.Exec(b.Context(), sql); err != nil {
			b.Fatal(err)
		}
	}
	jobs := postgres.NewJobs(pool)
	early := time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)
	for name, f := range map[string]postgres.Filter{
		"all": {}, "rare-state": {States: []string{"RUNNING"}}, "states": {States: []string{"RUNNING", "FAILED"}}, "rare-namespace": {Namespace: "rare"},
		"common-label": {Labels: map[string]string{"team": "3"}}, "rare-label": {Labels: map[string]string{"run": "5000"}},
		"long-ago": {Until: early}, "long-ago-failed": {Until: early, States: []string{"FAILED"}}, "prefix": {IDPrefix: "abcd"},
		"common-label-long-ago": {Until: early, Labels: map[string]string{"team": "3"}}, "no-such-label": {Labels: map[string]string{"team": "9"}},
	} {
		f.Limit = 100
		b.Run(name, func(b *testing.B) {
			for range b.N {
				f.Token = ""
				for range 3 { // deep pages cost what the first one does
					_, next, err := jobs.List(b.Context(), f)
					if err != nil {
						b.Fatal(err)
					}
					if f.Token = next; next == "" {
						break
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)/3, "ms/page")
		})
	}
}
