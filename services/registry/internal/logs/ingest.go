package logs

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Limits of one commit, and of what may wait for one. Agents that send more are
// held back by flow control.
const (
	batchBytes   = 4 << 20
	batchChunks  = 4096
	waitingBytes = 32 << 20
)

// Ingest stores chunks of all sessions: one committer takes what waits, stores
// it in one statement and then takes what came meanwhile; it never waits for a
// batch to fill. Use [NewIngest] and run [Ingest.Run].
type Ingest struct {
	rows Rows
	live Live
	log  *slog.Logger
	// count is told what was stored; may be nil.
	count func(chunks, bytes int)

	mu      sync.Mutex // guards the following
	room    *sync.Cond // there may be room again
	waiting []*entry
	bytes   int
	closed  bool
	wake    chan struct{}
}

type entry struct {
	Batch
	size int
	done chan error
}

// NewIngest returns an ingest that stores to rows and fans out to live. count is
// told what was stored; it may be nil.
func NewIngest(rows Rows, live Live, log *slog.Logger, count func(chunks, bytes int)) *Ingest {
	in := &Ingest{rows: rows, live: live, log: log, count: count, wake: make(chan struct{}, 1)}
	in.room = sync.NewCond(&in.mu)
	return in
}

// Submit queues a batch, and waits while too much waits already. The channel has
// the outcome once: nil when the batch is stored. Batches of one caller are
// stored in their order.
func (in *Ingest) Submit(ctx context.Context, b Batch) (<-chan error, error) {
	e := &entry{Batch: b, size: b.bytes(), done: make(chan error, 1)}
	defer context.AfterFunc(ctx, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		in.room.Broadcast()
	})()
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.bytes > 0 && in.bytes+e.size > waitingBytes && !in.closed && ctx.Err() == nil {
		in.room.Wait()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if in.closed {
		return nil, stopped()
	}
	in.waiting, in.bytes = append(in.waiting, e), in.bytes+e.size
	select {
	case in.wake <- struct{}{}:
	default:
	}
	return e.done, nil
}

// Run stores what is submitted until ctx ends; then it stores what waits, if it
// can at once, and refuses the rest as fault.Unavailable.
func (in *Ingest) Run(ctx context.Context) error {
	for {
		select {
		case <-in.wake:
		case <-ctx.Done():
		}
		for batch := in.take(); len(batch) > 0; batch = in.take() {
			in.commit(ctx, batch)
		}
		if ctx.Err() != nil && in.close() {
			return nil
		}
	}
}

func (in *Ingest) take() []*entry {
	in.mu.Lock()
	defer in.mu.Unlock()
	n, bytes, chunks := 0, 0, 0
	for n < len(in.waiting) && (n == 0 || bytes+in.waiting[n].size <= batchBytes && chunks+len(in.waiting[n].Chunks) <= batchChunks) {
		bytes, chunks = bytes+in.waiting[n].size, chunks+len(in.waiting[n].Chunks)
		n++
	}
	batch := in.waiting[:n:n]
	in.waiting = in.waiting[n:]
	return batch
}

// close refuses further batches, once none waits.
func (in *Ingest) close() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = len(in.waiting) == 0
	if in.closed {
		in.room.Broadcast()
	}
	return in.closed
}

// commit brings every entry to its end: while Postgres is away it tries again
// until ctx ends; what is refused for itself is found and refused alone.
func (in *Ingest) commit(ctx context.Context, batch []*entry) {
	delay := 10 * time.Millisecond
	for {
		err := in.store(ctx, batch)
		switch {
		case err == nil:
			in.finish(batch, nil)
			return
		case ctx.Err() != nil:
			in.finish(batch, stopped())
			return
		case errors.Is(err, fault.Unavailable), errors.Is(err, context.DeadlineExceeded):
			if delay == 10*time.Millisecond {
				in.log.Warn("cannot store logs, trying again", "error", err, "batches", len(batch))
			}
			timer := time.NewTimer(delay/2 + rand.N(delay))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			delay = min(2*delay, 2*time.Second)
		case len(batch) == 1:
			in.log.Error("a log is refused", "job", batch[0].JobID, "attempt", batch[0].Attempt, "error", err)
			in.finish(batch, err)
			return
		default:
			for _, e := range batch {
				in.commit(ctx, []*entry{e})
			}
			return
		}
	}
}

// storeTimeout ends one statement that hangs. It also bounds a last try at the end.
const storeTimeout = 8 * time.Second

func (in *Ingest) store(ctx context.Context, batch []*entry) error {
	limit := storeTimeout
	if ctx.Err() != nil {
		limit = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	all := make([]Batch, len(batch))
	for i, e := range batch {
		all[i] = e.Batch
	}
	return in.rows.Insert(ctx, all)
}

// finish answers and, where stored, fans out: live readers hear nothing that a
// crash could take back.
func (in *Ingest) finish(batch []*entry, err error) {
	chunks, bytes, size := 0, 0, 0
	for _, e := range batch {
		e.done <- err
		size += e.size
		if err != nil {
			continue
		}
		in.live.Publish(e.Batch)
		chunks += len(e.Chunks)
		for _, c := range e.Chunks {
			bytes += len(c.Data)
		}
	}
	if err == nil && in.count != nil {
		in.count(chunks, bytes)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.bytes -= size
	in.room.Broadcast()
}

// Writer takes the chunks of one attempt from one stream of an agent, in order,
// within the limits. It belongs to one goroutine.
type Writer struct {
	in    *Ingest
	jobID string
	num   int
	last  int64 // the last sequence that was submitted
	bytes int64 // of data, as far as submitted
	ended bool  // its eof was submitted
}

// Writer returns the writer of an attempt's log. next is the first sequence that
// the agent has to send: above 1, what is stored is looked up.
func (in *Ingest) Writer(ctx context.Context, a Attempt, next int64) (*Writer, error) {
	w := &Writer{in: in, jobID: a.JobID, num: a.Number}
	if next > 1 {
		s, err := in.rows.Stat(ctx, a)
		if err != nil {
			return nil, err
		}
		w.last, w.bytes, w.ended = s.LastSeq, s.Bytes, s.EOF
	}
	return w, nil
}

// Write submits chunks and returns the sequence that is stored when done has
// nil; done is nil where all of them were stored before. Chunks that came before are
// passed over; a gap is a fault.Invalid: nothing of the call is stored.
func (w *Writer) Write(ctx context.Context, chunks []Chunk) (acked int64, done <-chan error, err error) {
	b := Batch{JobID: w.jobID, Attempt: w.num}
	last, bytes, ended := w.last, w.bytes, w.ended
	var wrong fault.Fields
	for _, c := range chunks {
		switch {
		case c.Stream != Stdout && c.Stream != Stderr && (c.Stream != "" || !c.EOF):
			wrong.Add("chunks.stream", "%q is neither stdout nor stderr", c.Stream)
		case len(c.Data) > MaxChunkBytes:
			wrong.Add("chunks.data", "chunk %d has %d bytes, more than %d", c.Seq, len(c.Data), MaxChunkBytes)
		case c.Seq < 1 || c.Seq > last+1:
			wrong.Add("chunks.seq", "chunk %d follows %d: %d is missing", c.Seq, last, last+1)
		case ended && c.Seq > last:
			wrong.Add("chunks.seq", "chunk %d comes after the end of the log", c.Seq)
		}
		if len(wrong) > 0 {
			return 0, nil, wrong.Err("the log")
		}
		if c.Seq <= last {
			continue
		}
		if room := MaxAttemptBytes - bytes; int64(len(c.Data)) > room {
			c.Dropped += int64(len(c.Data)) - room
			c.Data = c.Data[:room]
		}
		last, bytes, ended = c.Seq, bytes+int64(len(c.Data)), c.EOF
		b.Chunks = append(b.Chunks, c)
	}
	if len(b.Chunks) == 0 {
		return last, nil, nil
	}
	if done, err = w.in.Submit(ctx, b); err != nil {
		return 0, nil, err
	}
	w.last, w.bytes, w.ended = last, bytes, ended
	return last, done, nil
}
