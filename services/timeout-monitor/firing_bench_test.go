package timeoutmonitor_test

import (
	"syscall"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
)

// BenchmarkFire measures how late deadlines fire, from the moment at which each was due until the StateTimedOut
// that the log has of it, by a whole service with -armed deadlines: first one after the other, as far
// apart as a hundred thousand are that come due within ten minutes, then a thousand at the same instant. Before, it
// waits for some time in which nothing is due, and reports what that costs.
//
//	go test hodei.dev/services/timeout-monitor -run '^$' -bench Fire -benchtime 1x -timeout 30m
func BenchmarkFire(b *testing.B) {
	const (
		batch   = 500
		apart   = 10 * time.Minute / 100_000
		steady  = 5000
		burst   = 1000
		quiet   = 10 * time.Second
		forEver = 24 * time.Hour
	)
	for range b.N {
		w := newWorld(b)
		w.monitor()
		for n := 0; n < *armed; n += batch {
			w.waiting(batch, func(int) time.Duration { return forEver })
		}
		w.caughtUp()
		before := processorTime(b)
		time.Sleep(quiet)
		b.ReportMetric(100*(processorTime(b)-before).Seconds()/quiet.Seconds(), "idle-%CPU")

		lead := 10 * time.Second
		first := time.Now().Add(lead)
		for n := 0; n < steady; n += batch {
			w.waiting(batch, func(i int) time.Duration { return time.Until(first.Add(time.Duration(n+i) * apart)) })
		}
		w.fired(first.Add(steady * apart))
		w.lateness(b, "steady", 0)

		head, err := w.store.Head(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		at := time.Now().Add(lead)
		w.waiting(burst, func(int) time.Duration { return time.Until(at) })
		w.fired(at.Add(time.Second))
		w.lateness(b, "burst", head)
	}
}

// waiting queues jobs that may wait for as long as given.
func (w *world) waiting(n int, patience func(int) time.Duration) {
	w.t.Helper()
	changes := make([]store.Change, n)
	for i := range changes {
		spec := job.Spec{Name: "j", Command: []string{"true"}, QueueTimeout: unit.Duration(patience(i))}
		facts, err := job.Create(spec, "", "")
		changes[i] = jobChange(w, job.Job{ID: event.NewID(), Spec: spec.WithDefaults()})(facts, err)
	}
	w.append(changes...)
}

// caughtUp waits until the monitor has seen everything.
func (w *world) caughtUp() {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	eventingtest.Eventually(w.t, "everything is armed", func() bool {
		var position int64
		w.scan(&position, `select coalesce(min(position), 0) from timeout_monitor.positions`)
		return position >= head
	})
}

// fired waits until all that is due before a moment has fired and was seen.
func (w *world) fired(last time.Time) {
	w.t.Helper()
	time.Sleep(time.Until(last))
	eventingtest.Eventually(w.t, "all have fired", func() bool {
		var left int
		w.scan(&left, `select count(*) from timeout_monitor.deadlines where due_at < $1`, last)
		return left == 0
	})
}

// lateness reports by how much what was appended after a position came too late.
func (w *world) lateness(b *testing.B, what string, after int64) {
	b.Helper()
	var p50, p99, most, least float64
	err := w.store.Pool().QueryRow(b.Context(), `
		with late as (
			select extract(epoch from t.occurred_at - q.occurred_at - (q.data->>'queue_timeout')::interval) as s
			from hodei.events t join hodei.events q on q.stream_id = t.stream_id and q.type = 'JobQueued'
			where t.type = 'StateTimedOut' and t.position > $1)
		select percentile_cont(0.5) within group (order by s), percentile_cont(0.99) within group (order by s), max(s), min(s) from late`,
		after).Scan(&p50, &p99, &most, &least)
	if err != nil {
		b.Fatal(err)
	}
	if least < 0 {
		b.Errorf("one fired %.3f s before it was due", -least)
	}
	b.ReportMetric(1000*p50, what+"-p50-ms")
	b.ReportMetric(1000*p99, what+"-p99-ms")
	b.ReportMetric(1000*most, what+"-max-ms")
}

func (w *world) scan(to any, sql string, args ...any) {
	w.t.Helper()
	if err := w.store.Pool().QueryRow(w.t.Context(), sql, args...).Scan(to); err != nil {
		w.t.Fatal(err)
	}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
