package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// How jobs are sent: what a message may have, and how many may be unanswered.
const (
	batchJobs  = 100
	batchBytes = 1 << 20
	batchAhead = 10_000
)

// entry is one line of a file of jobs.
type entry struct {
	line int
	spec *schedulerv1.JobSpec
	// problem is why it was not sent.
	problem string
}

// submission sends the lines of a file as one stream of jobs and prints an answer
// for each, in order. A stream that breaks is opened again and what was not
// answered sent again: each job can be told apart, so none is queued twice.
type submission struct {
	a         *app
	r         *remote
	namespace string
	progress  *progress
	// bear is how long to bear with a server that takes no more jobs.
	bear time.Duration

	mu sync.Mutex // guards what follows
	// open are read and not yet answered, in order; room is signalled when it shrinks.
	open              []entry
	room              *sync.Cond
	accepted, refused int
	printErr          error
}

func newSubmission(a *app, r *remote, namespace string, room time.Duration) *submission {
	s := &submission{a: a, r: r, namespace: namespace, bear: room, progress: newProgress(a)}
	s.room = sync.NewCond(&s.mu)
	return s
}

func (s *submission) run(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	entries := make(chan entry, 2*batchJobs)
	var readErr error
	go func() {
		readErr = s.read(ctx, in, entries)
		close(entries) // publishes readErr
	}()
	p := s.a.patience(s.r)
	p.room = s.bear
	for {
		done, err := s.stream(ctx, entries, p)
		if done {
			return readErr
		}
		if s.printErr != nil {
			return s.printErr
		}
		if err = p.bear(ctx, err); err != nil {
			return err
		}
	}
}

// read makes entries of lines.
func (s *submission) read(ctx context.Context, in io.Reader, entries chan<- entry) error {
	lines := bufio.NewReaderSize(in, 64<<10)
	for n := 1; ; n++ {
		line, long, err := readLine(lines)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading line %d: %w", n, err)
		}
		if text := bytes.TrimSpace(line); len(text) > 0 || long {
			select {
			case entries <- s.entry(n, text, long):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return nil
		}
	}
}

func (s *submission) entry(n int, text []byte, long bool) entry {
	if long {
		return entry{line: n, problem: fmt.Sprintf("longer than %d MiB", maxLine>>20)}
	}
	spec, err := parseSpec(text)
	if err != nil {
		return entry{line: n, problem: err.Error()}
	}
	if spec.GetNamespace() == "" {
		spec.Namespace = s.namespace
	}
	identify(spec)
	return entry{line: n, spec: spec}
}

// readLine reads a line of any length and keeps at most maxLine bytes of it.
func readLine(r *bufio.Reader) (line []byte, long bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			long, line = true, nil
		}
		if !long {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, long, err
		}
	}
}

// stream sends over one stream until all is answered (done) or the stream breaks.
func (s *submission) stream(ctx context.Context, entries <-chan entry, p *patience) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.r.jobs.QueueJobs(ctx)
	if err != nil {
		return false, err
	}
	sent := make(chan bool, 1)
	go func() { sent <- s.send(ctx, stream, entries) }()
	unhook := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.room.Broadcast()
		s.mu.Unlock()
	})
	defer unhook()
	for next := int64(0); ; {
		m, err := stream.Recv()
		if err != nil {
			cancel()
			all := <-sent
			s.mu.Lock()
			defer s.mu.Unlock()
			return all && len(s.open) == 0 && errors.Is(err, io.EOF), err
		}
		for _, result := range m.GetResults() {
			if result.GetIndex() != next {
				err = fault.New(fault.Internal, "the server answered job %d of the stream where %d was due", result.GetIndex(), next)
				break
			}
			next++
			if err = again(result); err != nil {
				break
			}
			p.renew()
			if err = s.settle(result); err != nil {
				break
			}
		}
		if err != nil {
			cancel()
			<-sent
			return false, err
		}
	}
}

// again is why a job has to be sent again: there was no room for it, or nobody knows
// whether it was queued. What follows it in the stream is sent again as well.
func again(result *schedulerv1.QueueJobsResult) error {
	kind := fault.Kind(result.GetKind())
	if kind != fault.Exhausted && kind != fault.Unavailable {
		return nil
	}
	err := fault.New(kind, "%s", result.GetError())
	err.RetryAfter, _ = time.ParseDuration(result.GetRetryAfter()) // empty: unknown
	return err
}

// send sends what is open again, then what comes; it tells whether that was all.
func (s *submission) send(ctx context.Context, stream grpc.BidiStreamingClient[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse], entries <-chan entry) bool {
	s.mu.Lock()
	again := append([]entry(nil), s.open...)
	s.mu.Unlock()
	for len(again) > 0 {
		var part []entry
		part, again = cut(again)
		if sendSpecs(stream, part) != nil {
			return false // Recv has the reason
		}
	}
	for {
		batch, more := gather(ctx, entries)
		if !s.accept(ctx, batch) || sendSpecs(stream, batch) != nil {
			return false
		}
		if !more {
			return ctx.Err() == nil && stream.CloseSend() == nil
		}
	}
}

// cut takes what one message may have.
func cut(entries []entry) (part, rest []entry) {
	size := 0
	for i, e := range entries {
		size += proto.Size(e.spec)
		if i == batchJobs || i > 0 && size > batchBytes {
			return entries[:i], entries[i:]
		}
	}
	return entries, nil
}

// gather waits for one entry and takes what is there besides; it never waits for a
// batch to fill.
func gather(ctx context.Context, entries <-chan entry) (batch []entry, more bool) {
	select {
	case e, ok := <-entries:
		if !ok {
			return nil, false
		}
		batch = append(batch, e)
	case <-ctx.Done():
		return nil, false
	}
	for size := proto.Size(batch[0].spec); len(batch) < batchJobs && size < batchBytes; {
		select {
		case e, ok := <-entries:
			if !ok {
				return batch, false
			}
			batch = append(batch, e)
			size += proto.Size(e.spec)
		default:
			return batch, true
		}
	}
	return batch, true
}

// accept makes entries open, as soon as there is room; it tells whether ctx lasted.
// What it has taken from the file it keeps in any case.
func (s *submission) accept(ctx context.Context, batch []entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) > batchAhead && ctx.Err() == nil {
		s.room.Wait()
	}
	s.open = append(s.open, batch...)
	s.tellRefused()
	return ctx.Err() == nil
}

func sendSpecs(stream grpc.BidiStreamingClient[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse], batch []entry) error {
	var specs []*schedulerv1.JobSpec
	for _, e := range batch {
		if e.spec != nil {
			specs = append(specs, e.spec)
		}
	}
	if len(specs) == 0 {
		return nil
	}
	return stream.Send(&schedulerv1.QueueJobsRequest{Specs: specs})
}

// settle prints the answer to the first open entry.
func (s *submission) settle(result *schedulerv1.QueueJobsResult) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) == 0 {
		return fault.New(fault.Internal, "the server answered more jobs than it was sent")
	}
	s.tell(s.open[0].line, result)
	s.open = s.open[1:]
	s.tellRefused()
	s.room.Broadcast()
	s.progress.show(s.accepted, s.refused)
	return s.printErr
}

// tellRefused prints the first open entries as long as they were never sent.
func (s *submission) tellRefused() {
	for len(s.open) > 0 && s.open[0].spec == nil {
		s.tell(s.open[0].line, &schedulerv1.QueueJobsResult{Index: -1, Error: s.open[0].problem})
		s.open = s.open[1:]
	}
}

// tellUnanswered says from which line on there is no answer: nobody knows whether
// the jobs of the first of them are queued.
func (s *submission) tellUnanswered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) > 0 {
		s.a.note("the lines from %d on have no answer: jobs of them may have been queued; those with an id or idempotency_key may be sent again", s.open[0].line)
	}
}

func (s *submission) tell(line int, result *schedulerv1.QueueJobsResult) {
	if result.GetError() != "" {
		s.refused++
		s.progress.clear()
		s.a.note("line %d: %s", line, render.Plain(result.GetError()))
	} else {
		s.accepted++
	}
	var err error
	switch {
	case s.a.json():
		var object []byte
		if object, err = render.With("line", line, result); err == nil {
			_, err = s.a.out.Write(append(object, '\n'))
		}
	case result.GetError() == "":
		_, err = fmt.Fprintln(s.a.out, result.GetJobId())
	}
	if err != nil && s.printErr == nil {
		s.printErr = fmt.Errorf("printing the ids: %w", err)
	}
}

// progress tells on stderr how far a submission is: on a line of its own on a
// terminal, else now and then. The caller serialises its calls.
type progress struct {
	a     *app
	live  bool
	every time.Duration
	last  time.Time
	drawn bool
}

func newProgress(a *app) *progress {
	p := &progress{a: a, live: terminalOf(a.err) && !terminalOf(a.out), every: 5 * time.Second, last: time.Now()}
	if p.live {
		p.every = 200 * time.Millisecond
	}
	return p
}

func (p *progress) show(accepted, refused int) {
	if time.Since(p.last) < p.every {
		return
	}
	p.last = time.Now()
	if p.live {
		fmt.Fprintf(p.a.err, "\r%d jobs queued, %d lines refused", accepted, refused)
		p.drawn = true
		return
	}
	p.a.note("%d jobs queued, %d lines refused so far", accepted, refused)
}

// clear makes room for another line.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.a.err, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) done() { p.clear() }

// marshal is JSON without the escapes that only HTML needs.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
