package logs

import (
	"context"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/services/registry/core"
)

const (
	// pageChunks bounds what a reader holds: with the largest chunks, 16 MiB.
	pageChunks = 16
	// sendBytes is about how much goes into one message.
	sendBytes = 512 << 10
	// sweepEvery is how often a reader that hears nothing looks at the rows. What it
	// finds is counted, and 0 without faults.
	sweepEvery = 15 * time.Second
)

// Request says what to read.
type Request struct {
	// JobID is complete.
	JobID string
	// Attempt is 0 for the latest and, with Follow, those after it.
	Attempt int
	// Stream is Stdout, Stderr or empty for both.
	Stream string
	// AfterSeq: only chunks after this one, of the first attempt that is read.
	AfterSeq int64
	// Tail: only so many lines at the end of what is stored; 0 = all.
	Tail int
	// Since: only chunks of this time and later, by the agent's clock.
	Since time.Time
	// Follow goes on with what comes, until the log is complete.
	Follow bool
}

// Reader reads logs. Its fields are set once; it is safe for concurrent use.
type Reader struct {
	Rows Rows
	Live Live
	Jobs Jobs
	// Retention is how long logs are kept, for the words about one that is gone.
	Retention time.Duration
	// Now is the clock.
	Now func() time.Time
	// Swept is told when a sweep found chunks that should have been announced; may be nil.
	Swept func()
}

// Read sends what was asked for, in order, without gap or duplicate. A reader
// that is slow holds up nobody: what it misses of the live part it gets from the
// rows. Send is called from one goroutine; its error ends the reading.
//
// A followed attempt ends with its eof or, where none came (its worker was
// lost), with the attempt. Attempt 0 goes on to later attempts until the job ends.
func (r *Reader) Read(ctx context.Context, q Request, send func(attempt int, chunks []Chunk) error) error {
	f := &following{reader: r, q: q, send: send}
	if q.Follow {
		// First listen, then read: what is stored in between is seen twice, never missed.
		changed, stop, err := r.Jobs.Watch(ctx, q.JobID)
		if err != nil {
			return err
		}
		defer stop()
		sub, err := r.Live.Subscribe(ctx, q.JobID)
		if err != nil {
			return err
		}
		defer sub.Close()
		f.changed, f.sub = changed, sub
	}
	j, err := r.Jobs.Job(ctx, q.JobID)
	if err != nil {
		return err
	}
	f.job = j
	return f.run(ctx)
}

// following is one reading.
type following struct {
	reader  *Reader
	q       Request
	send    func(attempt int, chunks []Chunk) error
	changed <-chan struct{}
	sub     Subscription
	job     job.Job

	attempt Attempt
	last    int64 // of the current attempt, seen
	tail    *core.Tail
	eof     bool
	dropped int
}

func (f *following) run(ctx context.Context) error {
	number := f.q.Attempt
	if number == 0 {
		number = max(f.job.Attempt, 1)
	}
	f.last = f.q.AfterSeq
	for first := true; ; first = false {
		there, err := f.await(ctx, number)
		if err != nil || !there {
			return err
		}
		f.attempt, f.eof, f.tail = attempt(f.job, number), false, nil
		if first && f.q.Tail > 0 {
			if err := f.findTail(ctx); err != nil {
				return err
			}
		}
		if err := f.readAttempt(ctx); err != nil {
			return err
		}
		if first {
			if err := f.gone(ctx); err != nil {
				return err
			}
		}
		if !f.q.Follow || f.q.Attempt != 0 {
			return nil
		}
		number, f.last = number+1, 0
	}
}

// await waits until the attempt exists, where it still may.
func (f *following) await(ctx context.Context, number int) (bool, error) {
	for f.job.Attempt < number {
		switch {
		case f.job.State.Terminal() || !f.q.Follow:
			if f.q.Attempt != 0 {
				return false, fault.New(fault.NotFound, "job %s has no attempt %d; its latest is %d", f.job.ID, number, f.job.Attempt).
					WithCode("ATTEMPT_NOT_FOUND", "see its attempts: `hodei job get "+f.job.ID+"`")
			}
			return false, nil
		}
		if err := f.wait(ctx, nil); err != nil {
			return false, err
		}
	}
	return true, nil
}

// wait returns when something may have changed, with the job as it then is. A
// batch that continues what was read is given to take.
func (f *following) wait(ctx context.Context, take func(Batch) (bool, error)) error {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	for {
		// Dropped is asked while nothing is being received: whatever did not fit
		// came when the buffer was full, so at least one batch followed this check.
		if d := f.sub.Dropped(); d != f.dropped {
			f.dropped = d
			return nil
		}
		select {
		case b := <-f.sub.C():
			if take == nil || b.Attempt != f.attempt.Number {
				continue
			}
			if done, err := take(b); done || err != nil {
				return err
			}
			continue
		case <-f.changed:
		case <-f.sub.Resumed():
		case <-timer.C:
			if err := f.sweep(ctx, take != nil); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		j, err := f.reader.Jobs.Job(ctx, f.q.JobID)
		if err != nil {
			return err
		}
		f.job = j
		return nil
	}
}

// sweep counts where rows are there that were not announced.
func (f *following) sweep(ctx context.Context, reading bool) error {
	if !reading || f.reader.Swept == nil {
		return nil
	}
	missed, err := f.reader.Rows.After(ctx, f.attempt, f.last, 1)
	if err == nil && len(missed) > 0 && len(f.sub.C()) == 0 {
		f.reader.Swept()
	}
	return err
}

// readAttempt sends an attempt's chunks to the end of what there is and, when
// following, of what comes.
func (f *following) readAttempt(ctx context.Context) error {
	for {
		// Asked before the rows are read: what was stored before the end is among them.
		ended := over(f.job, f.attempt.Number)
		if err := f.readRows(ctx); err != nil {
			return err
		}
		if f.eof || !f.q.Follow || ended {
			return nil
		}
		if err := f.wait(ctx, f.takeLive); err != nil {
			return err
		}
		if f.eof {
			return nil
		}
	}
}

func (f *following) readRows(ctx context.Context) error {
	for {
		chunks, err := f.reader.Rows.After(ctx, f.attempt, f.last, pageChunks)
		if err != nil {
			return err
		}
		if err := f.pass(chunks); err != nil || f.eof || len(chunks) < pageChunks {
			return err
		}
	}
}

// takeLive sends a live batch where it continues what was read; done says that
// the rows have to be read, or that the log is complete.
func (f *following) takeLive(b Batch) (done bool, err error) {
	if len(b.Chunks) == 0 || b.Chunks[0].Seq > f.last+1 {
		return true, nil
	}
	err = f.pass(b.Chunks)
	return f.eof, err
}

// pass sends those chunks that are new and asked for.
func (f *following) pass(chunks []Chunk) error {
	var out []Chunk
	size := 0
	for _, c := range chunks {
		if c.Seq <= f.last {
			continue // a duplicate
		}
		f.last, f.eof = c.Seq, f.eof || c.EOF
		if c = f.wanted(c); len(c.Data) == 0 && c.Dropped == 0 && !c.EOF {
			continue
		}
		if size += len(c.Data); size > sendBytes && len(out) > 0 {
			if err := f.send(f.attempt.Number, out); err != nil {
				return err
			}
			out, size = nil, len(c.Data)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil
	}
	return f.send(f.attempt.Number, out)
}

// wanted cuts what was not asked for; an eof stays, without data.
func (f *following) wanted(c Chunk) Chunk {
	other := f.q.Stream != "" && c.Stream != f.q.Stream
	if other || c.At.Before(f.q.Since) {
		c.Data, c.Dropped = nil, 0
		return c
	}
	if f.tail != nil {
		c.Data = f.tail.Cut(c.Seq, c.Stream, c.Data)
	}
	return c
}

// findTail finds where the last lines of what is stored begin, from the end.
func (f *following) findTail(ctx context.Context) error {
	s, err := f.reader.Rows.Stat(ctx, f.attempt)
	if err != nil {
		return err
	}
	tail := core.NewTail(f.q.Tail)
	below := s.LastSeq + 1
	for done := false; !done; {
		chunks, err := f.reader.Rows.Before(ctx, f.attempt, below, pageChunks)
		if err != nil {
			return err
		}
		done = len(chunks) < pageChunks
		for _, c := range chunks {
			below = c.Seq
			if c.Seq <= f.q.AfterSeq {
				done = true
				break
			}
			if c = f.wanted(c); tail.Add(c.Seq, c.Stream, c.Data) {
				done = true
				break
			}
		}
	}
	f.last = max(f.last, tail.First()-1)
	return f.sendTail(ctx, tail, s.LastSeq)
}

// sendTail sends the last lines up to through; what comes after it is whole.
func (f *following) sendTail(ctx context.Context, tail *core.Tail, through int64) error {
	f.tail = tail
	defer func() { f.tail = nil }()
	for f.last < through && !f.eof {
		chunks, err := f.reader.Rows.After(ctx, f.attempt, f.last, pageChunks)
		if err != nil || len(chunks) == 0 {
			return err
		}
		for i, c := range chunks {
			if c.Seq > through {
				chunks = chunks[:i]
				break
			}
		}
		if err := f.pass(chunks); err != nil {
			return err
		}
	}
	return nil
}

// gone says so where an attempt's log was removed with its day.
func (f *following) gone(ctx context.Context) error {
	if f.reader.Retention <= 0 || f.last > f.q.AfterSeq || !f.job.State.Terminal() || f.reader.Now().Sub(f.job.FinishedAt) < f.reader.Retention {
		return nil
	}
	s, err := f.reader.Rows.Stat(ctx, f.attempt)
	if err != nil || s.LastSeq > 0 {
		return err
	}
	return fault.New(fault.NotFound, "the log of attempt %d of job %s is no longer there: logs are kept for %s", f.attempt.Number, f.job.ID, f.reader.Retention).
		WithCode("LOG_EXPIRED", "the job's history still has its result: `hodei job history "+f.job.ID+"`")
}
