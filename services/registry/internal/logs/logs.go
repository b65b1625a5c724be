// Package logs is the output of jobs: it takes chunks from agents, has them
// stored before it acknowledges them, fans them out live, and reads them back as
// one sequence, stored and live, without gap or duplicate (R7.1).
//
// The rows are the truth; what is live may be lost, late or twice. An attempt's
// chunks are stored in their order from 1 without gaps, so a reader always knows
// what it misses.
package logs

import (
	"context"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
)

// Limits (R7.0).
const (
	// MaxAttemptBytes is how much of an attempt's output is kept; the rest is counted.
	MaxAttemptBytes = 64 << 20
	// MaxChunkBytes bounds one chunk.
	MaxChunkBytes = 1 << 20
)

// The streams of a command.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Chunk is a piece of output as the agent read it.
type Chunk struct {
	// Seq grows by one over both streams, from 1.
	Seq    int64
	Stream string
	// At is the agent's clock.
	At   time.Time
	Data []byte
	// Dropped bytes were cut here.
	Dropped int64
	// EOF: the last chunk of the attempt.
	EOF bool
}

// Batch is chunks of one attempt, in order.
type Batch struct {
	JobID   string
	Attempt int
	Chunks  []Chunk
}

func (b Batch) bytes() int {
	n := 0
	for _, c := range b.Chunks {
		n += len(c.Data) + 128 // and what a row costs beside its data
	}
	return n
}

// Attempt names the log of one attempt.
type Attempt struct {
	JobID  string
	Number int
	// Since is when it was assigned: nothing of it is older; zero = not known.
	Since time.Time
}

// Stat is how much of a log is stored.
type Stat struct {
	LastSeq, Bytes int64
	EOF            bool
}

// Rows are the stored chunks. Reads and writes may fail with fault.Unavailable.
type Rows interface {
	// Insert stores all or nothing; what is stored already is passed over.
	Insert(ctx context.Context, batches []Batch) error
	// After returns at most limit chunks above a sequence, in order.
	After(ctx context.Context, a Attempt, after int64, limit int) ([]Chunk, error)
	// Before returns at most limit chunks below a sequence, the latest first.
	Before(ctx context.Context, a Attempt, before int64, limit int) ([]Chunk, error)
	// Stat measures a log.
	Stat(ctx context.Context, a Attempt) (Stat, error)
}

// Live fans out what has been stored.
type Live interface {
	// Publish never blocks and never fails: what is lost is in the rows.
	Publish(b Batch)
	// Subscribe hears what is published about a job from now on.
	Subscribe(ctx context.Context, jobID string) (Subscription, error)
}

// Subscription is one reader's ear. Its buffer is bounded; what does not fit is dropped.
type Subscription interface {
	// C has the batches. One without chunks says that something was stored.
	C() <-chan Batch
	// Dropped counts what did not fit.
	Dropped() int
	// Resumed has a token after the connection was lost and is back.
	Resumed() <-chan struct{}
	// Close ends it.
	Close()
}

// Jobs are the jobs that logs belong to.
type Jobs interface {
	// Job is the job as it is; fault.NotFound where there is none.
	Job(ctx context.Context, id string) (job.Job, error)
	// Watch has a token whenever the job may have changed, from now on.
	Watch(ctx context.Context, id string) (changed <-chan struct{}, stop func(), err error)
}

// attempt finds the log of an attempt of j.
func attempt(j job.Job, number int) Attempt {
	a := Attempt{JobID: j.ID, Number: number}
	for _, r := range j.Attempts {
		if r.Number == number {
			a.Since = r.AssignedAt
		}
	}
	return a
}

// over tells whether the attempt has ended, or will never be.
func over(j job.Job, number int) bool {
	if j.State.Terminal() || j.Attempt > number {
		return true
	}
	return j.Attempt == number && !j.State.HasWorker()
}

func stopped() error {
	return fault.New(fault.Unavailable, "the registry is stopping").WithCode("STOPPING", "call again: it is restarted, or another replica answers")
}
