package chassis_test

import (
	"context"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/chassis"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// replica is a service of one exclusive part.
type replica struct {
	t      *testing.T
	health *process.Health
	active chan struct{} // has a token when the part begins
	stop   func()
}

func start(t *testing.T, spec chassis.Spec, postgresURL, natsURL string) *replica {
	t.Helper()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: spec.Name, LogLevel: "warn", LogFormat: "text", LogWriter: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := chassis.DefaultConfig()
	cfg.PostgresURL, cfg.NATSURL, cfg.ShutdownGrace = postgresURL, natsURL, config.Duration(10*time.Second)
	r := &replica{t: t, health: process.NewHealth(nil), active: make(chan struct{}, 16)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		c, err := chassis.Open(ctx, spec, cfg, process.Env{Log: tel.Log, Tel: tel, Health: r.health})
		if err != nil {
			done <- nil // it was stopped before its ground was there
			return
		}
		done <- c.Run(ctx, c.Exclusive("part", func(ctx context.Context) error {
			r.active <- struct{}{}
			<-ctx.Done()
			return nil
		}), lifecycle.Part{Name: "door", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// ready waits until the service is ready; unready until a check says why not.
func (r *replica) ready() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	if err := r.health.Wait(ctx); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replica) unready(check, why string) {
	r.t.Helper()
	eventingtest.Eventually(r.t, "check "+check+" to say "+why, func() bool {
		ready, reasons := r.health.Ready()
		return !ready && strings.Contains(reasons[check], why)
	})
}

// The database, its schema and NATS come after the service, which says what it waits
// for, and becomes ready without a restart.
func TestAnyStartOrder(t *testing.T) {
	server := eventingtest.NATS(t)
	natsURL := server.URL()
	server.Stop()
	proxy := newProxy(t)
	url := eventingtest.Postgres(t)
	spec := chassis.Spec{Name: "late", Schema: "late", Migrations: migration()}
	r := start(t, spec, proxy.url(t, url), natsURL)
	r.unready("postgres", "connect")
	proxy.open(t, url)
	r.unready("postgres", "schema")
	if err := store.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	r.unready("postgres", "late")
	if err := chassis.Migrate(t.Context(), spec, url); err != nil {
		t.Fatal(err)
	}
	r.unready("nats", "NATS")
	server.Start()
	r.ready()
	<-r.active
}

// Ready is what can do its work: not without Postgres or NATS, but as a standby.
func TestReadiness(t *testing.T) {
	server := eventingtest.NATS(t)
	proxy := newProxy(t)
	url := eventingtest.MigratedPostgres(t)
	proxy.open(t, url)
	first := start(t, chassis.Spec{Name: "both"}, proxy.url(t, url), server.URL())
	first.ready()
	<-first.active
	standby := start(t, chassis.Spec{Name: "both", ServesWithoutNATS: true}, proxy.url(t, url), server.URL())
	standby.ready()

	server.Stop()
	first.unready("nats", "NATS")
	if ready, reasons := standby.health.Ready(); !ready {
		t.Errorf("what needs no NATS is not ready without it: %v", reasons)
	}
	server.Start()
	first.ready()

	proxy.close()
	first.unready("part", "")
	standby.unready("part", "")
	proxy.open(t, url)
	first.ready()
	standby.ready()

	// Whoever has the role stops: the other takes it, ready all the time.
	for len(standby.active) == 0 && len(first.active) == 0 {
		eventingtest.Eventually(t, "one to be active again", func() bool { return len(standby.active)+len(first.active) > 0 })
	}
	holder, other := first, standby
	if len(standby.active) > 0 {
		holder, other = standby, first
	}
	holder.stop()
	<-other.active
	if ready, reasons := other.health.Ready(); !ready {
		t.Errorf("the one that took over is not ready: %v", reasons)
	}
}

func migration() fs.FS {
	return fstest.MapFS{"00001_late.sql": {Data: []byte("-- +goose Up\nCREATE TABLE late.things (id int PRIMARY KEY);\n")}}
}
