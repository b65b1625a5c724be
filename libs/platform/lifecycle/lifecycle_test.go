package lifecycle_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// diary notes what happened in which order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) add(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

// part runs until told to stop, and takes linger to do so.
func (d *diary) part(name string, linger time.Duration) lifecycle.Part {
	return lifecycle.Part{Name: name, Run: func(ctx context.Context) error {
		<-ctx.Done()
		d.add(name + " told")
		time.Sleep(linger) // in a synctest bubble: no real time
		d.add(name + " gone")
		return ctx.Err()
	}}
}

func TestStopsInReverseOrderEachAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		err := lifecycle.Run(ctx, 20*time.Second, quiet, d.part("store", time.Second), d.part("bus", 5*time.Second), d.part("server", time.Second))
		if err != nil {
			t.Fatalf("a clean stop answered %v", err)
		}
		want := []string{"server told", "server gone", "bus told", "bus gone", "store told", "store gone"}
		if !slices.Equal(d.lines, want) {
			t.Fatalf("order %q, want %q", d.lines, want)
		}
	})
}

func TestFailures(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		run  func(context.Context) error
		want []string
	}{
		"an error":      {func(context.Context) error { return boom }, []string{"bad: boom"}},
		"early nil":     {func(context.Context) error { return nil }, []string{"bad: stopped by itself"}},
		"foreign ended": {func(context.Context) error { return context.Canceled }, []string{"bad: context canceled"}},
		"a panic":       {func(context.Context) error { panic("oh") }, []string{"bad: panic: oh", "lifecycle_test.go"}},
		"panic of nil":  {func(context.Context) error { return errOf(nil) }, []string{"nil pointer"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				err := lifecycle.Run(t.Context(), time.Second, quiet, d.part("good", 0), lifecycle.Part{Name: "bad", Run: tc.run})
				if err == nil {
					t.Fatal("no error")
				}
				for _, want := range tc.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("error %q does not say %q", err, want)
					}
				}
				if !slices.Equal(d.lines, []string{"good told", "good gone"}) {
					t.Errorf("the other part was not stopped: %q", d.lines)
				}
			})
		})
	}
}

func TestFirstFailureComesFirstAndLaterOnesToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := lifecycle.Part{Name: "late", Run: func(ctx context.Context) error {
			<-ctx.Done()
			return errors.New("disk full")
		}}
		err := lifecycle.Run(t.Context(), time.Second, quiet, late, lifecycle.Part{Name: "bad", Run: func(context.Context) error { return fault.Unavailable }})
		if err == nil || err.Error() != "bad: unavailable\nlate: disk full" {
			t.Fatalf("got %v", err)
		}
		if !errors.Is(err, fault.Unavailable) {
			t.Error("the kind is lost")
		}
	})
}

func TestGraceNamesThePartsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		release := make(chan struct{})
		hung := lifecycle.Part{Name: "hung", Run: func(context.Context) error { <-release; return nil }}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		err := lifecycle.Run(ctx, 20*time.Second, quiet, d.part("store", time.Second), hung, d.part("server", 0))
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("took %s, want all of the grace", took)
		}
		if err == nil || !strings.Contains(err.Error(), "did not stop within 20s: hung") || strings.Contains(err.Error(), "store") {
			t.Errorf("got %v", err)
		}
		if want := []string{"server told", "server gone", "store told", "store gone"}; !slices.Equal(d.lines, want) {
			t.Errorf("a hung part kept the others from stopping: %q", d.lines)
		}
		close(release)
	})
}

func TestPartsSeeTheValuesOfTheContext(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
	err := lifecycle.Run(ctx, time.Second, quiet, lifecycle.Part{Name: "p", Run: func(ctx context.Context) error {
		if ctx.Value(key{}) != "v" {
			return errors.New("value lost")
		}
		cancel()
		<-ctx.Done()
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
}

type broken struct{ err error }

func errOf(b *broken) error { return b.err }
