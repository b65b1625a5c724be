package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// The load's own patience: a call that gets no answer is repeated until it has one.
const (
	callTimeout = 5 * time.Second
	callPause   = 200 * time.Millisecond
)

// load is a client that queues jobs at a steady rate, cancels some, and remembers
// every answer that it got. It repeats what was not answered, with the same key:
// an accepted job is one whose answer came.
type load struct {
	conn    *grpc.ClientConn
	jobs    schedulerv1.JobServiceClient
	task    []string // the program of its jobs, without kind and duration
	plan    string
	work    sync.WaitGroup
	began   time.Time
	mu      sync.Mutex // guards what follows
	queued  map[string]queued
	refused []string
	repeats int
}

// queued is an accepted job.
type queued struct {
	kind string
	at   time.Time
}

func newLoad(address, plan string, task []string) (*load, error) {
	conn, err := rpc.Dial(address)
	if err != nil {
		return nil, fmt.Errorf("connect to the gateway: %w", err)
	}
	return &load{
		conn: conn, jobs: schedulerv1.NewJobServiceClient(conn), task: task, plan: plan, began: time.Now(), queued: map[string]queued{},
	}, nil
}

// generate queues rate jobs a second until ctx ends, at random moments; what it has begun it
// finishes under life.
func (l *load) generate(ctx, life context.Context, r *rand.Rand, rate float64) {
	for n := 0; ; n++ {
		pause := time.Duration(r.ExpFloat64() / rate * float64(time.Second))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		k := pick(r)
		spec := l.spec(k, n, between(r, k.lasts))
		var cancel time.Duration
		if k.cancelled > 0 {
			cancel = time.Duration(r.Int64N(int64(k.cancelled)))
		}
		l.work.Go(func() { l.drive(life, k, spec, cancel) })
	}
}

func (l *load) spec(k kind, n int, lasts time.Duration) *schedulerv1.JobSpec {
	s := &schedulerv1.JobSpec{
		Name: k.name, Labels: map[string]string{"kind": k.name}, Command: append(append([]string{}, l.task...), k.name),
		IdempotencyKey: fmt.Sprintf("%s/%d", l.plan, n), Placement: &schedulerv1.Placement{Provider: providerLoad},
		Retry: &schedulerv1.Retry{InfrastructureAttempts: proto.Int32(plenty)},
	}
	if k.lasts[1] > 0 {
		s.Command = append(s.Command, lasts.String())
	}
	if k.spec != nil {
		k.spec(s)
	}
	return s
}

// drive queues one job, and cancels it after a while where its kind wants that.
func (l *load) drive(ctx context.Context, k kind, spec *schedulerv1.JobSpec, cancel time.Duration) {
	var id string
	err := l.insist(ctx, func(ctx context.Context) error {
		out, err := l.jobs.QueueJob(ctx, &schedulerv1.QueueJobRequest{Spec: spec})
		id = out.GetJob().GetId()
		return err
	})
	if err != nil {
		l.refuse("queue "+spec.GetIdempotencyKey(), err)
		return
	}
	l.mu.Lock()
	l.queued[id] = queued{kind: k.name, at: time.Now()}
	l.mu.Unlock()
	if k.cancelled == 0 {
		return
	}
	select {
	case <-time.After(cancel):
	case <-ctx.Done():
	}
	err = l.insist(ctx, func(ctx context.Context) error {
		_, err := l.jobs.CancelJob(ctx, &schedulerv1.CancelJobRequest{JobId: id, Reason: "nobody wants it"})
		return err
	})
	// The answer to the first try may have been lost; and the job may have ended before.
	if err != nil && !errors.Is(err, fault.Precondition) {
		l.refuse("cancel job "+id, err)
	}
}

func (l *load) refuse(what string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, fmt.Sprintf("%s: %v", what, err))
}

// insist repeats a call until it is answered. An answer that will not become
// another one is returned.
func (l *load) insist(ctx context.Context, call func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, callTimeout)
		err := call(try)
		cancel()
		if err == nil || ctx.Err() != nil || !unanswered(err) {
			return err
		}
		l.mu.Lock()
		l.repeats++
		l.mu.Unlock()
		select {
		case <-time.After(callPause):
		case <-ctx.Done():
			return err
		}
	}
}

// unanswered tells whether an error says nothing about what became of the call, or that
// it may be taken later.
func unanswered(err error) bool {
	for _, kind := range []error{fault.Unavailable, fault.Exhausted, context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// probe queues a job and waits for its end: how long it takes says whether the
// platform works.
func (l *load) probe(ctx context.Context, key string) (time.Duration, error) {
	began := time.Now()
	spec := &schedulerv1.JobSpec{
		Name: "probe", Labels: map[string]string{"kind": "probe"}, Command: []string{"true"}, IdempotencyKey: l.plan + "/" + key,
		Placement: &schedulerv1.Placement{Provider: providerProbe}, Retry: &schedulerv1.Retry{InfrastructureAttempts: proto.Int32(plenty)},
	}
	var id string
	err := l.insist(ctx, func(ctx context.Context) error {
		out, err := l.jobs.QueueJob(ctx, &schedulerv1.QueueJobRequest{Spec: spec})
		id = out.GetJob().GetId()
		return err
	})
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	l.queued[id] = queued{kind: "probe", at: began}
	l.mu.Unlock()
	for {
		var job *schedulerv1.Job
		err := l.insist(ctx, func(ctx context.Context) error {
			out, err := l.jobs.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: id})
			job = out.GetJob()
			return err
		})
		if err != nil {
			return 0, err
		}
		if job.GetFinishedAt() != nil {
			return job.GetFinishedAt().AsTime().Sub(began), nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// accepted returns a copy of the accepted jobs.
func (l *load) accepted() map[string]queued {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.queued)
}
