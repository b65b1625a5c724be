package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/test/check"
)

// settleIn is how long after the last fault everything may take to come to rest. It is
// more than any chain of leases and silences, and less than the deadlines that
// would hide a job that nobody looks after.
const settleIn = 150 * time.Second

// sayEvery is how often it is said what is not at rest yet.
const sayEvery = 20 * time.Second

// outcome is what became of a plan.
type outcome struct {
	plan    plan
	dir     string
	jobs    int
	faults  []*injected
	settled time.Duration
	verdict verdict
	// err is why the plan could not be carried out.
	err error
}

func (o outcome) bad() bool {
	return o.err != nil || o.verdict.bad() || o.jobs == 0 || len(o.faults) == 0
}

// execute carries a plan out on a platform of its own.
func execute(ctx context.Context, p plan, rate float64, serial bool, log func(string, ...any)) (o outcome) {
	o = outcome{plan: p, dir: p.options.dir}
	log("%s", p)
	w, err := newPlatform(ctx, p.options)
	if err != nil {
		o.err = fmt.Errorf("start the platform: %w", err)
		return o
	}
	defer func() { o.err = errors.Join(o.err, w.close()) }()
	l, err := newLoad(w.gateway, fmt.Sprintf("chaos-%d", p.seed), w.task())
	if err != nil {
		o.err = err
		return o
	}
	defer l.conn.Close()

	// Faults end with the plan; what was begun is finished while the platform comes to rest.
	life, endLife := context.WithTimeout(ctx, p.lasts+settleIn)
	defer endLife()
	faults, endFaults := context.WithTimeout(life, p.lasts)
	defer endFaults()
	i := &injector{platform: w, load: l, log: log, serial: serial, scopes: map[string]*sync.Mutex{}}
	l.work.Go(func() { l.generate(faults, life, rand.New(rand.NewPCG(p.seed, 2)), rate) })
	i.run(faults, life, p.faults)
	<-faults.Done()
	if ctx.Err() != nil {
		o.err = ctx.Err()
		return o
	}
	log("the faults are over: %d jobs so far", len(l.accepted()))
	healed := time.Now()
	if err := w.heal(ctx); err != nil {
		o.err = fmt.Errorf("heal: %w", err)
		return o
	}
	restless := w.settle(life, log)
	endLifeWhenDone(l, i, endLife, restless)
	o.settled = time.Since(healed)
	log("at rest after %s", o.settled.Round(time.Millisecond))
	o.faults, o.jobs = i.made(), len(l.accepted())
	o.verdict = judge(ctx, w, l, o.faults, restless)
	return o
}

// endLifeWhenDone waits for the load's and the injector's last calls; where the platform does not come
// to rest they are ended.
func endLifeWhenDone(l *load, i *injector, endLife context.CancelFunc, restless []string) {
	if len(restless) > 0 {
		endLife()
	}
	l.work.Wait()
	i.work.Wait()
}

// settle waits until every job has ended and no worker is left but idle ones, and returns
// what is not so when ctx ends.
func (p *platform) settle(ctx context.Context, log func(string, ...any)) []string {
	said := time.Now()
	for {
		left, err := p.restless(ctx)
		if err == nil && len(left) == 0 {
			return nil
		}
		if time.Since(said) > sayEvery {
			said = time.Now()
			log("not at rest yet: %d, such as %s", len(left), strings.Join(left[:min(len(left), 3)], ", "))
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			left, err := p.restless(context.WithoutCancel(ctx))
			if err != nil {
				return []string{err.Error()}
			}
			return left
		}
	}
}

// restless lists the jobs that have not ended and the workers that are not idle.
func (p *platform) restless(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, p.database())
	if err != nil {
		return nil, err
	}
	defer db.Close(context.WithoutCancel(ctx))
	rows, err := db.Query(ctx, `select stream_type || '/' || stream_id || ' is ' || state from hodei.streams
		where stream_type in ('job', 'worker') and not terminal and not (stream_type = 'worker' and state = 'READY') order by stream_id`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// agreeIn is how long projections may take to equal the log once all is at rest: words about
// what was recovered from may still be appended.
const agreeIn = 20 * time.Second

// checkLog asserts the invariants of the log, of the stream and of the projections. holes
// says that a fault has deleted messages from inside the stream.
func (p *platform) checkLog(ctx context.Context, holes bool) (check.Report, error) {
	nc, err := p.conn()
	if err != nil {
		return check.Report{}, fmt.Errorf("connect to NATS: %w", err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for deadline := time.Now().Add(agreeIn); ; {
		r, err := check.Run(ctx, check.Config{PostgresURL: p.database(), NATS: nc, AtRest: true, Holes: holes})
		if err != nil || len(r.Violations) == 0 || time.Now().After(deadline) {
			return r, err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return r, ctx.Err()
		}
	}
}

// removeDir removes what a plan has left on the disk.
func removeDir(dir string) error {
	if !strings.HasPrefix(dir, os.TempDir()) {
		return fmt.Errorf("%s is not a temporary directory", dir)
	}
	return os.RemoveAll(dir)
}
