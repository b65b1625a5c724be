package store_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/pgserver"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/eventing/store/storetest"
)

// BenchmarkAppend measures appends of one event to a new or an existing stream
// by so many callers of one Store: on a server that syncs to disk, and on one
// that does not.
func BenchmarkAppend(b *testing.B) {
	server, err := pgserver.Start(b.Context(), pgserver.Config{DataDir: b.TempDir() + "/data", BindToParent: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Stop(b.Context()); err != nil && b.Context().Err() == nil {
			b.Error(err)
		}
	})
	durable := server.URL("postgres")
	if err := store.Migrate(b.Context(), durable); err != nil {
		b.Fatal(err)
	}
	for _, on := range []struct{ name, url string }{{"durable", durable}, {"unsafe", eventingtest.MigratedPostgres(b)}} {
		for _, callers := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/callers=%d", on.name, callers), func(b *testing.B) {
				benchmarkAppend(b, open(b, store.Config{URL: on.url}), callers)
			})
		}
	}
}

func benchmarkAppend(b *testing.B, s *store.Store, callers int) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error, callers)
	b.ResetTimer()
	for range callers {
		go func() {
			stream, version := storetest.NewStream("job"), 0
			for left.Add(-1) >= 0 {
				if version == 6 {
					stream, version = storetest.NewStream("job"), 0
				}
				if _, err := s.Append(b.Context(), storetest.One(storetest.NewChange(b, stream, version, 1))); err != nil {
					done <- err
					return
				}
				version++
			}
			done <- nil
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
