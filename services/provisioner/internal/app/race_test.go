package app_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/provisioner/internal/app"
)

// heard passes records on, so that a test can wait for one.
type heard struct {
	slog.Handler
	records chan slog.Record
}

func (h heard) Enabled(context.Context, slog.Level) bool { return true }
func (h heard) Handle(_ context.Context, r slog.Record) error {
	select {
	case h.records <- r:
	default:
	}
	return nil
}

// TestWhatNobodyHereCanEndIsNotConfirmed: a worker of a kind that this provisioner does
// not have, as when another version made it. Its job must not be queued again while it
// may still run.
func TestWhatNobodyHereCanEndIsNotConfirmed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.stop()
	id := f.request()
	w := f.load(id)
	f.append(w, []worker.Event{worker.Provisioned{ProviderID: f.id, Resource: "r"}})
	w = f.load(id)
	facts, err := w.Terminate(worker.CauseLost, "test")
	if err != nil {
		t.Fatal(err)
	}
	f.append(w, facts)

	records := make(chan slog.Record, 64)
	f.engine.Kinds = map[provider.Kind]app.Provider{}
	f.engine.Logger = slog.New(heard{slog.DiscardHandler, records})
	f.run()
	for {
		select {
		case r := <-records:
			alert := false
			r.Attrs(func(a slog.Attr) bool { alert = alert || a.Key == "alert"; return true })
			if !alert {
				continue
			}
		case <-time.After(20 * time.Second):
			t.Error("nobody is told")
		}
		break
	}
	if now := f.load(id); now.State != worker.StateTerminating {
		t.Errorf("the worker is %s: %s", now.State, now.Reason)
	}
}
