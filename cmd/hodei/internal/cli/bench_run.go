package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// load is one run of the bench. The times of a job are nanoseconds since begin, 0
// where it has not happened; each is written once, by whoever sees it.
type load struct {
	o     benchOptions
	r     *remote
	ids   []string
	index map[string]int
	begin time.Time

	sent, acked, running, done []atomic.Int64
	failed                     atomic.Int64
	left                       atomic.Int64
	finished                   chan struct{}
	// each has the jobs to watch one by one, as they are queued; nil = one watch for all.
	each chan int
	// beat gets a value, if it has room, whenever something happens.
	beat chan struct{}
}

func (a *app) benchRun(ctx context.Context, r *remote, o benchOptions) (*figuresOfRun, error) {
	l := &load{
		o: o, r: r, ids: make([]string, o.jobs), index: make(map[string]int, o.jobs),
		sent: make([]atomic.Int64, o.jobs), acked: make([]atomic.Int64, o.jobs),
		running: make([]atomic.Int64, o.jobs), done: make([]atomic.Int64, o.jobs),
		finished: make(chan struct{}), beat: make(chan struct{}, 1),
	}
	for i := range l.ids {
		l.ids[i] = uuid.Must(uuid.NewV7()).String()
		l.index[l.ids[i]] = i
	}
	l.left.Store(int64(o.jobs))
	before, err := take(ctx, r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil)
	stream, err := l.watch(ctx)
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Code == "UNIMPLEMENTED" {
		a.note("the server cannot watch all jobs at once: each is watched once it is queued, so running and done may seem later than they were")
		l.each = make(chan int, o.jobs)
	} else if err != nil {
		return nil, fmt.Errorf("opening the watch: %w", err)
	}
	part := func(f func(context.Context) error) {
		parts.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	l.begin = time.Now()
	if l.each == nil {
		part(func(context.Context) error { return l.see(stream) })
	} else {
		part(l.seeEach)
	}
	part(l.submit)
	if err := l.await(ctx); err != nil {
		return nil, err
	}
	elapsed := time.Since(l.begin)
	after, err := take(ctx, r)
	if err != nil {
		return nil, err
	}
	f := l.figures()
	f.since(before, after, elapsed, o.jobs)
	return f, nil
}

// await waits for the last job's end; what stands still for too long is an error.
func (l *load) await(ctx context.Context) error {
	stall := time.NewTimer(l.o.stall)
	defer stall.Stop()
	for {
		select {
		case <-l.finished:
			return nil
		case <-l.beat:
			stall.Reset(l.o.stall)
		case <-stall.C:
			return fault.New(fault.Exhausted, "nothing has happened for %s, and %d of %d jobs have not ended", l.o.stall, l.left.Load(), l.o.jobs).
				WithCode("BENCH_STALLED", "see `hodei status` and `hodei job list --namespace "+l.o.namespace+"`")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mark writes a time once; it tells whether it was the first.
func (l *load) mark(at *atomic.Int64) bool {
	first := at.CompareAndSwap(0, max(1, int64(time.Since(l.begin))))
	select {
	case l.beat <- struct{}{}:
	default:
	}
	return first
}

// over counts a job that has come to its end, or never will begin.
func (l *load) over(i int, failed bool) {
	if !l.mark(&l.done[i]) {
		return
	}
	if failed {
		l.failed.Add(1)
	}
	if l.left.Add(-1) == 0 {
		close(l.finished)
	}
}

// watch opens the watch and waits until it is open.
func (l *load) watch(ctx context.Context) (recv func() (*schedulerv1.WatchJobsResponse, error), err error) {
	stream, err := l.r.jobs.WatchJobs(ctx, &schedulerv1.WatchJobsRequest{Namespace: l.o.namespace})
	if err != nil {
		return nil, err
	}
	if _, err := stream.Recv(); err != nil {
		return nil, err
	}
	return stream.Recv, nil
}

// see takes the times of states until the run is over.
func (l *load) see(recv func() (*schedulerv1.WatchJobsResponse, error)) error {
	for {
		m, err := recv()
		if err != nil {
			select {
			case <-l.finished:
				return nil
			default:
				return fmt.Errorf("watching: %w", err)
			}
		}
		for _, c := range m.GetChanges() {
			if i, ours := l.index[c.GetJobId()]; ours {
				l.state(i, c.GetState())
			}
		}
	}
}

// state takes the time of a state.
func (l *load) state(i int, state string) {
	switch {
	case state == string(job.StateRunning):
		l.mark(&l.running[i])
	case terminal(state):
		l.over(i, state != string(job.StateSucceeded))
	}
}

// ack takes the time of an answer, and has the job watched where there is no other watch.
func (l *load) ack(i int) {
	l.mark(&l.acked[i])
	if l.each != nil {
		l.each <- i // it has room for all
	}
}

// seeEach watches the jobs one by one.
func (l *load) seeEach(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watches sync.WaitGroup
	defer watches.Wait()
	for range l.o.jobs {
		select {
		case i := <-l.each:
			watches.Go(func() {
				err := watchOnce(ctx, l.r, l.ids[i], func(j *schedulerv1.Job) error {
					l.state(i, j.GetState())
					return nil
				})
				if !errors.Is(err, errEnded) {
					cancel(err)
				}
			})
		case <-l.finished:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("watching: %w", context.Cause(ctx))
		}
	}
	watches.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	return nil
}

// submit makes the load.
func (l *load) submit(ctx context.Context) error {
	switch {
	case l.o.batch > 0:
		return l.submitBatches(ctx)
	case l.o.rate > 0:
		return l.submitPaced(ctx)
	default:
		var next atomic.Int64
		return l.callers(ctx, func() (int, bool) {
			i := int(next.Add(1)) - 1
			return i, i < l.o.jobs
		})
	}
}

// callers queue the jobs that next names, one after the other each.
func (l *load) callers(ctx context.Context, next func() (int, bool)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var callers sync.WaitGroup
	for range l.o.concurrency {
		callers.Go(func() {
			for i, ok := next(); ok && ctx.Err() == nil; i, ok = next() {
				if err := l.queue(ctx, i); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	callers.Wait()
	return context.Cause(ctx)
}

// queue queues one job. What the server refuses has failed; a server that is gone
// ends the run.
func (l *load) queue(ctx context.Context, i int) error {
	l.mark(&l.sent[i])
	_, err := l.r.jobs.QueueJob(ctx, &schedulerv1.QueueJobRequest{Spec: l.o.job(l.ids[i])})
	switch {
	case err == nil:
		l.ack(i)
		return nil
	case ctx.Err() != nil, errors.Is(err, fault.Unavailable), errors.Is(err, fault.Invalid), errors.Is(err, fault.NotFound):
		return fmt.Errorf("queueing: %w", err) // it would be the same for all
	default:
		l.over(i, true)
		return nil
	}
}

// submitPaced sends each job at its time, whatever became of those before it.
func (l *load) submitPaced(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var calls sync.WaitGroup
	defer calls.Wait()
	t := time.NewTimer(0)
	defer t.Stop()
	for i := range l.o.jobs {
		due := time.Duration(float64(i) / l.o.rate * float64(time.Second))
		t.Reset(max(0, due-time.Since(l.begin)))
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		calls.Go(func() {
			if err := l.queue(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	calls.Wait()
	return context.Cause(ctx)
}

// submitBatches sends all over one stream.
func (l *load) submitBatches(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.r.jobs.QueueJobs(ctx)
	if err != nil {
		return fmt.Errorf("queueing: %w", err)
	}
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel()
	sender.Go(func() {
		for from := 0; from < l.o.jobs; from += l.o.batch {
			to := min(from+l.o.batch, l.o.jobs)
			m := &schedulerv1.QueueJobsRequest{}
			for i := from; i < to; i++ {
				l.mark(&l.sent[i])
				m.Specs = append(m.Specs, l.o.job(l.ids[i]))
			}
			if stream.Send(m) != nil {
				return // Recv has the reason
			}
		}
		_ = stream.CloseSend() // as above
	})
	for answered := 0; answered < l.o.jobs; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = fault.New(fault.Unavailable, "the server ended the stream too early")
		}
		if err != nil {
			return fmt.Errorf("queueing: %w", err)
		}
		for _, result := range m.GetResults() {
			i := int(result.GetIndex())
			if i < 0 || i >= l.o.jobs {
				return fault.New(fault.Internal, "the server answered job %d of %d", i, l.o.jobs)
			}
			answered++
			if result.GetError() != "" {
				l.over(i, true)
			} else {
				l.ack(i)
			}
		}
	}
	return nil
}

// figures are the latencies and rates of a run that is over.
func (l *load) figures() *figuresOfRun {
	f := &figuresOfRun{Failed: int(l.failed.Load())}
	latency := func(at []atomic.Int64) (out []time.Duration, last time.Duration) {
		for i := range at {
			if v := time.Duration(at[i].Load()); v > 0 {
				out = append(out, v-time.Duration(l.sent[i].Load()))
				last = max(last, v)
			}
		}
		return out, last
	}
	acks, lastAck := latency(l.acked)
	runs, _ := latency(l.running)
	ends, lastEnd := latency(l.done)
	f.AckMS, f.RunningMS, f.DoneMS = percentilesOf(acks), percentilesOf(runs), percentilesOf(ends)
	if lastAck > 0 {
		f.SubmitPerS = round(float64(len(acks)) / lastAck.Seconds())
	}
	if lastEnd > 0 {
		f.DonePerS = round(float64(len(ends)-f.Failed) / lastEnd.Seconds())
	}
	return f
}
