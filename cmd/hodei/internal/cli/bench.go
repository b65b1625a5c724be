package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// benchOptions say what load to make.
type benchOptions struct {
	jobs, concurrency, batch, runs, fakeWorkers int
	rate                                        float64
	provider, namespace                         string
	argv                                        []string
	// stall is how long nothing at all may happen.
	stall time.Duration
}

func (o *benchOptions) check() error {
	switch {
	case o.jobs < 1:
		return Usage("--jobs %d: at least 1", o.jobs)
	case o.concurrency < 1:
		return Usage("--concurrency %d: at least 1", o.concurrency)
	case o.runs < 1:
		return Usage("--runs %d: at least 1", o.runs)
	case o.rate < 0 || o.batch < 0 || o.fakeWorkers < 0:
		return Usage("--rate, --batch and --fake-workers are not negative")
	case o.rate > 0 && o.batch > 0:
		return Usage("--rate or --batch, not both")
	case o.fakeWorkers > 0 && o.provider != "":
		return Usage("--fake-workers make a provider of their own: --provider would be ignored")
	}
	return nil
}

func (a *app) benchCommand() *cobra.Command {
	o := benchOptions{}
	cmd := &cobra.Command{
		Use:   "bench [flags] [--] [COMMAND [ARG...]]",
		Short: "put load on the platform and measure it",
		Long: `Bench queues jobs, watches them without asking, and prints throughput and latencies,
as the median of several runs and how far those are apart. Times are by this
program's own clock: ack is QueueJob answered; running and done are that state
received on a watch that was opened before the load.

Without --rate or --batch, --concurrency callers queue one job after the other.
--fake-workers makes an external provider, simulates its workers over the agents'
door, and removes everything at the end: the platform alone, without processes.

The object that -o json prints has what was asked for and these figures, as the
medians over all runs, and again for each run in "runs":
  submit_per_s     jobs queued a second, from the first call to the last answer
  done_per_s       jobs that SUCCEEDED a second, from the first call to the last end
  ack_ms           milliseconds until QueueJob answered: p50, p90, p99, max
  running_ms       until RUNNING was received; done_ms: until a final state was
  events_per_s     events of the whole platform: appended to the log, published on the
                   stream, audited in the audit log
  failed           jobs that were refused or did not succeed, of all runs together
  lag_end          events that were in the log but not in the audit log when the last
                   job was done
  cpu_ms_per_job   processor time of the services; null where they do not tell. Postgres,
                   agents and jobs are not in it`,
		Example: `  hodei bench --jobs 1000
  hodei bench --jobs 3000 --rate 50 -- true
  hodei bench --jobs 90000 --fake-workers 200 --batch 100 --runs 1 -o json`,
		RunE: func(cmd *cobra.Command, argv []string) error {
			if o.argv = argv; len(argv) == 0 {
				o.argv = []string{"true"}
			}
			if err := o.check(); err != nil {
				return err
			}
			return a.bench(cmd.Context(), o)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.IntVar(&o.jobs, "jobs", 1000, "queue `N` jobs in each run")
	flags.IntVar(&o.concurrency, "concurrency", 32, "so many callers (`C`) at once")
	flags.Float64Var(&o.rate, "rate", 0, "queue `R` jobs a second, whatever the answers; 0 = as fast as the callers get answers")
	flags.IntVar(&o.batch, "batch", 0, "queue over one stream, `N` jobs a message; 0 = one call a job")
	flags.IntVar(&o.runs, "runs", 5, "measure `N` times")
	flags.IntVar(&o.fakeWorkers, "fake-workers", 0, "simulate `N` workers")
	flags.StringVar(&o.provider, "provider", "", "place the jobs on this provider, by `NAME` or id")
	flags.DurationVar(&o.stall, "stall", time.Minute, "give up once nothing has happened for so `LONG`")
	return cmd
}

func (a *app) bench(ctx context.Context, o benchOptions) (err error) {
	ctx, r, err := a.connect(ctx)
	if err != nil {
		return err
	}
	o.namespace = "bench-" + uuid.NewString()[:8]
	if o.fakeWorkers > 0 {
		a.note("starting %d fake workers", o.fakeWorkers)
		fleet, err := startFleet(ctx, r, o.namespace, o.fakeWorkers)
		if err != nil {
			return fmt.Errorf("starting fake workers: %w", err)
		}
		o.provider = o.namespace
		defer func() {
			if stopErr := fleet.stop(context.WithoutCancel(ctx)); err == nil {
				err = stopErr
			}
		}()
	}
	var runs []*figuresOfRun
	for n := range o.runs {
		figures, err := a.benchRun(ctx, r, o)
		if err != nil {
			return fmt.Errorf("run %d: %w", n+1, err)
		}
		a.note("run %d of %d: %.0f jobs/s queued, %.0f jobs/s done", n+1, o.runs, figures.SubmitPerS, figures.DonePerS)
		runs = append(runs, figures)
	}
	s := summarise(o, runs)
	if a.json() {
		data, err := marshal(s)
		if err != nil {
			return err
		}
		return render.Raw(a.out, data)
	}
	return s.print(a.out)
}

// job is one job of the load.
func (o *benchOptions) job(id string) *schedulerv1.JobSpec {
	s := &schedulerv1.JobSpec{Id: id, Name: "bench", Namespace: o.namespace, Command: o.argv}
	if o.provider != "" {
		s.Placement = &schedulerv1.Placement{Provider: o.provider}
	}
	return s
}

// summary is what `bench` prints: the medians of the runs, and the runs.
type summary struct {
	Jobs        int      `json:"jobs"`
	Concurrency int      `json:"concurrency"`
	Rate        float64  `json:"rate"`
	Batch       int      `json:"batch"`
	FakeWorkers int      `json:"fake_workers"`
	Command     []string `json:"command"`
	figuresOfRun
	Runs []*figuresOfRun `json:"runs"`
}

func summarise(o benchOptions, runs []*figuresOfRun) *summary {
	return &summary{
		Jobs: o.jobs, Concurrency: o.concurrency, Rate: o.rate, Batch: o.batch, FakeWorkers: o.fakeWorkers, Command: o.argv,
		figuresOfRun: medians(runs), Runs: runs,
	}
}

func (s *summary) print(w io.Writer) error {
	t := render.NewTable(w, "FIGURE", "MEDIAN", "LEAST", "MOST")
	row := func(name string, of func(*figuresOfRun) float64) {
		least, most := spread(s.Runs, of)
		t.Add(name, number(of(&s.figuresOfRun)), number(least), number(most))
	}
	row("submit jobs/s", func(f *figuresOfRun) float64 { return f.SubmitPerS })
	row("done jobs/s", func(f *figuresOfRun) float64 { return f.DonePerS })
	for _, l := range []struct {
		name string
		of   func(*figuresOfRun) *percentiles
	}{
		{"ack", func(f *figuresOfRun) *percentiles { return &f.AckMS }},
		{"running", func(f *figuresOfRun) *percentiles { return &f.RunningMS }},
		{"done", func(f *figuresOfRun) *percentiles { return &f.DoneMS }},
	} {
		row(l.name+" ms p50", func(f *figuresOfRun) float64 { return l.of(f).P50 })
		row(l.name+" ms p90", func(f *figuresOfRun) float64 { return l.of(f).P90 })
		row(l.name+" ms p99", func(f *figuresOfRun) float64 { return l.of(f).P99 })
		row(l.name+" ms max", func(f *figuresOfRun) float64 { return l.of(f).Max })
	}
	row("events/s appended", func(f *figuresOfRun) float64 { return f.EventsPerS.Appended })
	row("events/s published", func(f *figuresOfRun) float64 { return f.EventsPerS.Published })
	row("events/s audited", func(f *figuresOfRun) float64 { return f.EventsPerS.Audited })
	row("lag at the end", func(f *figuresOfRun) float64 { return float64(f.LagEnd) })
	row("failed", func(f *figuresOfRun) float64 { return float64(f.Failed) })
	if s.CPUMSPerJob != nil {
		row("cpu ms/job", func(f *figuresOfRun) float64 {
			if f.CPUMSPerJob == nil {
				return 0
			}
			return *f.CPUMSPerJob
		})
	}
	return t.Flush()
}

// number has as many digits as say something.
func number(v float64) string {
	switch {
	case v == float64(int64(v)) || v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3g", v)
	}
}
