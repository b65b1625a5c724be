package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// perJob is how many events a job has that is cancelled at once.
const perJob = 4

// wiping is one loss of the whole JetStream store under load.
type wiping struct {
	// history is how many events there are before, rate how many a second come.
	history, rate int
	// jobs are queued just before, and run while the store is away.
	jobs int
	// before and after are how many events come on both sides of the loss.
	before, after int64
}

// The whole store of NATS is deleted while events come: nothing is lost, nothing
// has its effect twice.
func TestTheStoreIsWiped(t *testing.T) {
	wiping{history: 4000, rate: 100, jobs: 20, before: 100, after: 300}.run(t)
}

// BenchmarkTheStoreIsWiped is the same with a long history; its figure is the time from
// the new server's start until everybody has handled all that there was then: `make bench-wipe`.
func BenchmarkTheStoreIsWiped(b *testing.B) {
	for range b.N {
		wiping{history: 1_000_000, rate: 500, before: 5000, after: 15_000}.run(b)
	}
}

func (w wiping) run(tb testing.TB) {
	tb.Helper()
	s := system.Start(tb, system.Options{})
	log := &load{tb: tb, s: s}
	log.open()
	began := time.Now()
	for n := 0; n < w.history; n += perJob * 1000 {
		log.append(1000)
	}
	handled(tb, s, 10*time.Minute, caughtUp)
	tb.Logf("history: %d events appended and handled by all after %s", w.history, time.Since(began).Round(time.Second))

	stop := log.steady(w.rate)
	log.more(w.before)
	jobs := log.queue(w.jobs)
	wipe(tb, s)
	back := time.Now()
	head, err := log.store.Head(context.WithoutCancel(tb.Context()))
	if err != nil {
		tb.Fatal(err)
	}
	handled(tb, s, 5*time.Minute, func(v serviceLine) bool { return v.Position >= head })
	recovered := time.Since(back)
	log.more(w.after)
	stop()
	for _, id := range jobs {
		s.Until(2*time.Minute, id+" has succeeded", func() (bool, string) {
			j := get(s, id)
			return j.State == "SUCCEEDED", fmt.Sprintf("%+v", j)
		})
	}
	handled(tb, s, time.Minute, caughtUp)

	tb.Logf("everybody had handled all that there was %.1f s after the empty server's start", recovered.Seconds())
	if b, ok := tb.(*testing.B); ok {
		b.ReportMetric(recovered.Seconds(), "s-to-recover")
	}
	began = time.Now()
	out, errs, code := s.Hodei("doctor")
	if code != 0 {
		tb.Errorf("the doctor, exit %d:\n%s%s", code, out, errs)
	}
	tb.Logf("full comparison in %.1f s:\n%s", time.Since(began).Seconds(), out)
	log.exact()
	if w.jobs > 0 {
		check.Assert(tb, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn(), AtRest: true})
	}
}

// wipe stops the NATS server, deletes its store, and starts an empty one at its address.
func wipe(tb testing.TB, s *system.System) {
	tb.Helper()
	port := s.NATS.Addr().(*net.TCPAddr).Port
	dir := s.NATS.StoreDir()
	s.NATS.Shutdown()
	s.NATS.WaitForShutdown()
	if err := os.RemoveAll(dir); err != nil {
		tb.Fatal(err)
	}
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: filepath.Join(s.Dir, "nats"), NoSigs: true, NoLog: true})
	if err != nil {
		tb.Fatal(err)
	}
	ns.Start()
	if !ns.ReadyForConnections(20 * time.Second) {
		tb.Fatal("the NATS server does not come up")
	}
	s.NATS = ns
}

// serviceLine is a service in the status.
type serviceLine struct {
	Name        string `json:"name"`
	Ready       bool   `json:"ready"`
	Unreachable bool   `json:"unreachable"`
	Position    int64  `json:"position"`
	Lag         int64  `json:"lag"`
	Head        int64  `json:"head"`
}

func caughtUp(v serviceLine) bool { return v.Lag == 0 && v.Head > 0 }

// handled waits until every service is ready and as far as wanted. Under load, one
// that is asked for few types stands at its last probe, a few seconds back.
func handled(tb testing.TB, s *system.System, within time.Duration, enough func(serviceLine) bool) {
	tb.Helper()
	s.Until(within, "everybody is far enough", func() (bool, string) {
		var status struct {
			Services []serviceLine `json:"services"`
		}
		out, errs, _ := s.Hodei("status", "-o", "json")
		if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Services) == 0 {
			return false, out + errs
		}
		for _, v := range status.Services {
			if !v.Ready || v.Unreachable || !enough(v) {
				return false, fmt.Sprintf("%+v", v)
			}
		}
		return true, ""
	})
}

// load appends jobs that are cancelled in the append that creates them: facts for
// everybody, work for nobody.
type load struct {
	tb    testing.TB
	s     *system.System
	store *store.Store
	come  atomic.Int64 // events of the steady load
}

// more waits until so many more events have come.
func (l *load) more(events int64) {
	l.tb.Helper()
	want := l.come.Load() + events
	l.s.Until(5*time.Minute, fmt.Sprintf("%d more events have come", events), func() (bool, string) {
		n := l.come.Load()
		return n >= want, fmt.Sprint(n)
	})
}

func (l *load) open() {
	l.tb.Helper()
	nc := l.s.Conn()
	var err error
	l.store, err = store.Open(l.tb.Context(), store.Config{URL: l.s.PostgresURL, OnCommit: bus.Nudger(nc), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.tb.Fatal(err)
	}
	l.tb.Cleanup(l.store.Close)
}

// queue queues real jobs, as a user does.
func (l *load) queue(jobs int) []string {
	l.tb.Helper()
	if jobs == 0 {
		return nil
	}
	lines := strings.Repeat(`{"command":["true"]}`+"\n", jobs)
	out, errs, code := l.s.HodeiIn(lines, "submit", "--file", "-")
	ids := strings.Fields(out)
	if code != 0 || len(ids) != jobs {
		l.tb.Fatalf("submit: exit %d, %d ids: %s", code, len(ids), errs)
	}
	return ids
}

func (l *load) append(jobs int) {
	l.tb.Helper()
	if err := l.try(context.WithoutCancel(l.tb.Context()), jobs); err != nil {
		l.tb.Fatal(err)
	}
}

func (l *load) try(ctx context.Context, jobs int) error {
	var a store.Append
	for range jobs {
		j := job.Job{ID: event.NewID()}
		created, err := job.Create(job.Spec{Command: []string{"true"}}, "", "")
		if err != nil {
			return err
		}
		for i, fact := range created {
			j = j.Evolve(fact, job.At{Version: i + 1, Time: time.Now()})
		}
		cancelled, err := j.RequestCancel("user/bench", "only its events are wanted")
		if err != nil {
			return err
		}
		c := store.Change{Stream: event.Stream{Type: "job", ID: j.ID}, Namespace: j.Spec.Namespace, State: string(job.StateCancelled), Terminal: true}
		meta := event.Meta{Source: "scheduler", Actor: "user/bench", CorrelationID: j.ID}
		for _, fact := range append(created, cancelled...) {
			e, err := event.New(c.Stream, meta, fact)
			if err != nil {
				return err
			}
			c.Events = append(c.Events, e)
		}
		if len(c.Events) != perJob {
			return fmt.Errorf("a cancelled job has %d events instead of %d", len(c.Events), perJob)
		}
		a.Changes = append(a.Changes, c)
	}
	_, err := l.store.Append(ctx, a)
	return err
}

// steady appends at a rate of events a second until stop is called.
func (l *load) steady(rate int) (stop func()) {
	l.tb.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.tb.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(time.Second * perJob / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := l.try(context.WithoutCancel(ctx), 1); err != nil {
				l.tb.Errorf("append: %v", err)
				return
			}
			l.come.Add(perJob)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	l.tb.Cleanup(stop)
	return stop
}

// exact compares what the projections have with the log: each event once in the audit
// log, each job once in the list, and one record of the loss.
func (l *load) exact() {
	l.tb.Helper()
	for _, c := range []struct{ what, sql string }{
		{"events that the audit log has not as the log", `select count(*) from hodei.events e full join audit.log a on a.position = e.position and a.event_id = e.event_id
			and a.digest = e.digest where e.position is null or a.position is null`},
		{"jobs that the list has not as the log", `select count(*) from (select stream_id, state from hodei.streams where stream_type = 'job') s
			full join scheduler.jobs j on j.id = s.stream_id and j.state = s.state where j.id is null or s.stream_id is null`},
		{"records of the loss too many", `select greatest(count(*) - 1, 0) from hodei.events where type = 'EventRepublished'`},
		{"jobs that ended twice", `select count(*) from (select from hodei.events where type = 'JobStatusChanged'
			and data ->> 'to' in ('SUCCEEDED', 'FAILED', 'CANCELLED', 'TIMEOUT') group by stream_id having count(*) > 1) x`},
		{"dead letters of the relay", `select count(*) from relay.dead_letters`},
	} {
		var n int64
		if err := l.store.Pool().QueryRow(context.WithoutCancel(l.tb.Context()), c.sql).Scan(&n); err != nil {
			l.tb.Errorf("%s: %v", c.what, err)
		} else if n != 0 {
			l.tb.Errorf("%d %s", n, c.what)
		}
	}
}
