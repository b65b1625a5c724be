package cli

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// follower reads a job's output, attempt after attempt, and prints every chunk once
// and in order, over lost connections too. What a stream left out (attempts that had
// ended before it was opened, chunks after a break) it fetches before it goes on.
// Not safe for concurrent use.
type follower struct {
	r    *remote
	id   string
	out  *output
	wait *patience
	// only is the one attempt that is wanted; 0 = the latest and those that come after it.
	only   int32
	stream string
	tail   int32
	since  *timestamppb.Timestamp
	// whole: also the attempts before the first one that the server sends.
	whole bool
	// alive is called whenever something came; may be nil.
	alive func()

	// attempt and seq are the last that was printed, complete whether that attempt's
	// log has ended.
	attempt  int32
	seq      int64
	complete bool
}

// follow prints until the job's log is complete.
func (f *follower) follow(ctx context.Context) error {
	for {
		req, all := f.next()
		err := f.read(ctx, req)
		switch {
		case errors.Is(err, io.EOF):
			f.wait.renew()
			if !all {
				f.complete = true
			}
			done, err := f.done(ctx)
			if done {
				return nil
			}
			if err == nil && all && !f.wait.pause(ctx) {
				return ctx.Err()
			}
			if err != nil {
				if err = f.wait.bear(ctx, err); err != nil {
					return err
				}
			}
		default:
			if err = f.wait.bear(ctx, err); err != nil {
				return err
			}
		}
	}
}

// next is the request that goes on after what was printed; all tells whether it
// covers every attempt to come, not just one.
func (f *follower) next() (req *registryv1.ReadLogsRequest, all bool) {
	req = &registryv1.ReadLogsRequest{JobId: f.id, Attempt: f.only, Stream: f.stream, Since: f.since, Follow: true}
	switch {
	case f.attempt == 0:
		req.Tail = f.tail
	case !f.complete:
		req.Attempt, req.AfterSeq = f.attempt, f.seq
		return req, false
	}
	return req, f.only == 0
}

// done asks whether what was printed is all that there will be.
func (f *follower) done(ctx context.Context) (bool, error) {
	if f.only != 0 {
		return true, nil
	}
	resp, err := f.r.jobs.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: f.id})
	if err != nil {
		return false, err
	}
	if !terminal(resp.GetJob().GetState()) {
		return false, nil
	}
	return true, f.rest(ctx, resp.GetJob().GetAttempt())
}

// rest prints what is stored up to an attempt and was not printed yet.
func (f *follower) rest(ctx context.Context, last int32) error {
	for f.attempt < last || f.attempt == last && last > 0 && !f.complete {
		if f.attempt == 0 && !f.whole {
			f.attempt = last
		}
		if err := f.fetch(ctx, max(f.attempt, 1)); err != nil {
			return err
		}
		if f.attempt < last {
			f.attempt, f.seq, f.complete = f.attempt+1, 0, false
		} else {
			f.complete = true
		}
	}
	return nil
}

// read prints one stream; it returns io.EOF at the stream's end, never nil.
func (f *follower) read(ctx context.Context, req *registryv1.ReadLogsRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.r.logs.ReadLogs(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		f.wait.renew()
		if f.alive != nil {
			f.alive()
		}
		for _, c := range m.GetChunks() {
			if err := f.take(ctx, m.GetAttempt(), c, req.GetTail() == 0 && req.GetSince() == nil); err != nil {
				return err
			}
		}
	}
}

// take prints a chunk unless it was printed before, and first what lies between it
// and the last one, where gaps tells that something can.
func (f *follower) take(ctx context.Context, attempt int32, c *registryv1.LogChunk, gaps bool) error {
	if attempt < f.attempt || attempt == f.attempt && c.GetSeq() <= f.seq {
		return nil
	}
	if gaps && f.stream == "" && f.only == 0 {
		if err := f.fill(ctx, attempt, c.GetSeq()); err != nil {
			return err
		}
	}
	if gaps && attempt == f.attempt && c.GetSeq() > f.seq+1 && f.stream == "" {
		f.out.endLine()
		f.out.a.note("output is missing here: the server has no chunk %d to %d of attempt %d", f.seq+1, c.GetSeq()-1, attempt)
	}
	return f.print(attempt, c)
}

func (f *follower) print(attempt int32, c *registryv1.LogChunk) error {
	if attempt != f.attempt {
		f.complete = false
	}
	if err := f.out.write(attempt, c); err != nil {
		return stopError{err}
	}
	f.attempt, f.seq = attempt, c.GetSeq()
	f.complete = f.complete || c.GetEof()
	return nil
}

// fill fetches what comes before chunk seq of an attempt and was not printed yet.
func (f *follower) fill(ctx context.Context, attempt int32, seq int64) error {
	if f.attempt == 0 && !f.whole {
		f.attempt = attempt // it begins here
	}
	for f.attempt < attempt {
		if f.attempt > 0 && !f.complete {
			if err := f.fetch(ctx, f.attempt); err != nil {
				return err
			}
		}
		f.attempt, f.seq, f.complete = f.attempt+1, 0, false
	}
	if seq > f.seq+1 {
		return f.fetchUntil(ctx, attempt, seq)
	}
	return nil
}

func (f *follower) fetch(ctx context.Context, attempt int32) error {
	return f.fetchUntil(ctx, attempt, 0)
}

// fetchUntil prints the stored chunks of one attempt after the last printed one, up
// to, and without, until; 0 = all.
func (f *follower) fetchUntil(ctx context.Context, attempt int32, until int64) error {
	if f.attempt != attempt {
		f.attempt, f.seq, f.complete = attempt, 0, false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.r.logs.ReadLogs(ctx, &registryv1.ReadLogsRequest{JobId: f.id, Attempt: attempt, AfterSeq: f.seq, Stream: f.stream})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) || errors.Is(err, fault.NotFound) {
			return nil // an attempt that never started has no log
		}
		if err != nil {
			return err
		}
		for _, c := range m.GetChunks() {
			if until > 0 && c.GetSeq() >= until {
				return nil
			}
			if c.GetSeq() <= f.seq {
				continue
			}
			if err := f.print(attempt, c); err != nil {
				return err
			}
		}
	}
}

// settle is how long the output of a job that has ended may take to come in while
// nothing comes at all.
const settle = 10 * time.Second
