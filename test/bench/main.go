// Command bench measures a platform of its own, `hodei dev` in a fresh data
// directory with Postgres syncing to disk, by `hodei bench`, and writes what it found
// into docs/performance.md. Run it from the top of the repository: `make bench`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b := bench{}
	flag.BoolVar(&b.short, "short", false, "a fifth of the load: enough to see that all of it works")
	flag.StringVar(&b.bin, "bin", "bin", "take hodei and hodei-agent from `DIR`")
	flag.StringVar(&b.out, "out", "docs/performance.md", "write the figures into `FILE`, between its markers; empty: only print them")
	flag.Parse()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one measurement of everything.
type bench struct {
	bin, out string
	short    bool
	report   report
}

// jobs is how many of n jobs this measurement makes.
func (b *bench) jobs(n int) string {
	if b.short {
		n /= 5
	}
	return fmt.Sprint(n)
}

// run measures on two platforms, one after the other: on one workers are used
// again, on the other each job has a worker of its own.
func (b *bench) run(ctx context.Context) error {
	b.report.begin(b.short)
	err := b.on(ctx, []string{"--workers", "4", "--jobs-per-worker", "0"}, b.reused)
	if err != nil {
		return err
	}
	if err := b.on(ctx, []string{"--jobs-per-worker", "1"}, b.oneShot); err != nil {
		return err
	}
	b.report.end()
	fmt.Print(b.report.String())
	if b.out == "" {
		return nil
	}
	return b.report.into(b.out)
}

func (b *bench) on(ctx context.Context, flags []string, measure func(context.Context, *platform) error) error {
	p, err := start(ctx, b.bin, flags)
	if err != nil {
		return err
	}
	defer p.stop()
	return measure(ctx, p)
}

// reused measures what needs no new processes of workers.
func (b *bench) reused(ctx context.Context, p *platform) error {
	if _, err := p.bench(ctx, "--jobs", "40", "--runs", "1"); err != nil { // the workers start
		return err
	}
	u, err := p.idle(ctx, 15*time.Second)
	if err != nil {
		return err
	}
	b.report.add("idle, 4 idle workers", "CPU, % of a core", "< 2", one(u.percent), u.percent < 2)
	b.report.add("", "resident memory, MiB", "< 250", one(u.mib), u.mib < 250)

	f, err := p.bench(ctx, "--jobs", b.jobs(1500), "--rate", "50", "--runs", "3")
	if err != nil {
		return err
	}
	b.report.add("warm worker, 50 jobs/s of `true`", "submit → RUNNING p50, ms", "≤ 5", f.of(runningP50), f.RunningMS.P50 <= 5)
	b.report.add("", "submit → RUNNING p99, ms", "≤ 25", f.of(runningP99), f.RunningMS.P99 <= 25)
	b.report.add("", "submit → acknowledged p50, ms", "", f.of(ackP50), true)
	b.report.add("", "CPU of the services, ms a job", "", f.of(cpuPerJob), true)

	if f, err = p.bench(ctx, "--jobs", b.jobs(3000), "--runs", "3"); err != nil {
		return err
	}
	b.report.add("32 callers, 4 reused workers run `true`", "submitted, jobs/s", "≥ 2500", f.of(submitted), f.SubmitPerS >= 2500)
	b.report.add("", "end to end, jobs/s", "≥ 300", f.of(done), f.DonePerS >= 300)
	b.report.add("", "CPU of the services, ms a job", "", f.of(cpuPerJob), true)

	if f, err = p.bench(ctx, "--jobs", b.jobs(2000), "--batch", "500", "--runs", "3"); err != nil {
		return err
	}
	b.report.add("one stream, 500 jobs a message", "submitted, jobs/s", "≥ 8000", f.of(submitted), f.SubmitPerS >= 8000)
	return b.sustained(ctx, p)
}

// sustained measures 200 fake workers for a minute, at the rate that a first,
// short run shows to be possible.
func (b *bench) sustained(ctx context.Context, p *platform) error {
	fake := []string{"--fake-workers", "200", "--batch", "100", "--runs", "1", "--jobs"}
	f, err := p.bench(ctx, append(fake, "4000")...)
	if err != nil {
		return err
	}
	if f, err = p.bench(ctx, append(fake, b.jobs(int(60*f.DonePerS)))...); err != nil {
		return err
	}
	b.report.add(fmt.Sprintf("200 fake workers, %.0f s", float64(f.Jobs)/f.DonePerS), "end to end, jobs/s", "≥ 1500", f.of(done), f.DonePerS >= 1500)
	b.report.add("", "events appended/s", "", one(f.EventsPerS.Appended), true)
	b.report.add("", "events published/s", "", one(f.EventsPerS.Published), true)
	b.report.add("", "events audited/s", "", one(f.EventsPerS.Audited), true)
	// A log that is behind by less than half a second of events is not getting further behind.
	b.report.add("", "events not audited at the end", "not growing", one(float64(f.LagEnd)), float64(f.LagEnd) < f.EventsPerS.Appended/2)
	b.report.add("", "CPU of the services, ms a job", "", f.of(cpuPerJob), true)
	return nil
}

// oneShot measures jobs that each start an agent.
func (b *bench) oneShot(ctx context.Context, p *platform) error {
	f, err := p.bench(ctx, "--jobs", b.jobs(500), "--runs", "3")
	if err != nil {
		return err
	}
	b.report.add("one-shot workers, twice the CPUs, run `true`", "end to end, jobs/s", "≥ 50", f.of(done), f.DonePerS >= 50)
	return nil
}
