package store_test

import (
	"os"
	"testing"

	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/eventing/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) (a, b storetest.Log) {
		url := eventingtest.MigratedPostgres(t)
		return open(t, store.Config{URL: url}), open(t, store.Config{URL: url})
	})
}

func open(tb testing.TB, config store.Config) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}
