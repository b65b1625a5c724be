package logs_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/services/registry/internal/logs"
)

// rows is a table in memory that misbehaves as it is told.
type rows struct {
	mu     sync.Mutex // guards the following
	chunks map[string][]logs.Chunk
	away   int    // so many inserts fail as Unavailable
	refuse string // the job whose chunks are refused
	calls  int
}

func (r *rows) Insert(_ context.Context, batches []logs.Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.away > 0 {
		r.away--
		return fault.New(fault.Unavailable, "away")
	}
	for _, b := range batches {
		if b.JobID == r.refuse {
			return errors.New("refused")
		}
	}
	for _, b := range batches {
		r.chunks[b.JobID] = append(r.chunks[b.JobID], b.Chunks...)
	}
	return nil
}

func (r *rows) After(_ context.Context, a logs.Attempt, after int64, limit int) (out []logs.Chunk, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.chunks[a.JobID] {
		if c.Seq > after && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, nil
}

func (r *rows) Before(context.Context, logs.Attempt, int64, int) ([]logs.Chunk, error) {
	return nil, nil
}

func (r *rows) Stat(_ context.Context, a logs.Attempt) (s logs.Stat, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.chunks[a.JobID] {
		s.LastSeq, s.Bytes, s.EOF = c.Seq, s.Bytes+int64(len(c.Data)), c.EOF
	}
	return s, nil
}

type silent struct{ logs.Live }

func (silent) Publish(logs.Batch) {}

type oneJob struct {
	logs.Jobs
	job job.Job
}

func (o oneJob) Job(context.Context, string) (job.Job, error) { return o.job, nil }

func ingest(t *testing.T, r *rows) (*logs.Ingest, func()) {
	t.Helper()
	in := logs.NewIngest(r, silent{}, slog.New(slog.DiscardHandler), nil)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return in, stop
}

func one(jobID string) logs.Batch {
	return logs.Batch{JobID: jobID, Attempt: 1, Chunks: []logs.Chunk{{Seq: 1, Stream: logs.Stdout, Data: []byte("x")}}}
}

func TestIngestOutlivesAnOutage(t *testing.T) {
	r := &rows{chunks: map[string][]logs.Chunk{}, away: 3}
	in, _ := ingest(t, r)
	var done []<-chan error
	for range 20 {
		d, err := in.Submit(t.Context(), one("a"))
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, d)
	}
	for _, d := range done {
		if err := <-d; err != nil {
			t.Fatal(err)
		}
	}
	if len(r.chunks["a"]) != 20 {
		t.Fatalf("%d chunks", len(r.chunks["a"]))
	}
}

func TestIngestRefusesOnlyWhatIsWrong(t *testing.T) {
	r := &rows{chunks: map[string][]logs.Chunk{}, refuse: "bad", away: 1}
	in, _ := ingest(t, r)
	good, err := in.Submit(t.Context(), one("good"))
	bad, berr := in.Submit(t.Context(), one("bad"))
	if err != nil || berr != nil {
		t.Fatal(err, berr)
	}
	if err := <-good; err != nil {
		t.Fatal(err)
	}
	if err := <-bad; err == nil {
		t.Fatal("the bad batch is stored")
	}
}

func TestIngestStops(t *testing.T) {
	r := &rows{chunks: map[string][]logs.Chunk{}, away: 1 << 30}
	in, stop := ingest(t, r)
	d, err := in.Submit(t.Context(), one("a"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-d; !errors.Is(err, fault.Unavailable) {
		t.Fatalf("what could not be stored: %v", err)
	}
	if _, err := in.Submit(t.Context(), one("a")); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("after the end: %v", err)
	}
}

func TestExpiredLog(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	ended := job.Job{ID: "a", State: job.StateFailed, Attempt: 1, FinishedAt: now.AddDate(0, 0, -40), Attempts: []job.Attempt{{Number: 1}}}
	for days, want := range map[int]error{30: fault.NotFound, 60: nil} {
		r := logs.Reader{
			Rows: &rows{}, Jobs: oneJob{job: ended}, Retention: time.Duration(days) * 24 * time.Hour, Now: func() time.Time { return now },
		}
		err := r.Read(t.Context(), logs.Request{JobID: "a"}, func(int, []logs.Chunk) error { return nil })
		if !errors.Is(err, want) {
			t.Errorf("kept for %d days: %v", days, err)
		}
	}
}
