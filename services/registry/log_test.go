package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// read reads a log to its end.
func (w *world) read(r *registryv1.ReadLogsRequest) ([]*registryv1.LogChunk, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*patience)
	defer cancel()
	s, err := w.logs.ReadLogs(ctx, r)
	if err != nil {
		return nil, err
	}
	var all []*registryv1.LogChunk
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m.GetChunks()...)
	}
}

func (w *world) text(r *registryv1.ReadLogsRequest) string {
	w.t.Helper()
	chunks, err := w.read(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return text(chunks)
}

func text(chunks []*registryv1.LogChunk) string {
	var b strings.Builder
	for _, c := range chunks {
		b.Write(c.GetData())
	}
	return b.String()
}

func TestReadLogs(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	if got := w.text(&registryv1.ReadLogsRequest{JobId: id}); got != "" {
		t.Fatalf("a job without attempts: %q", got)
	}
	a.run(id)
	l := a.logsTo(w.replica)
	binary := string([]byte{0, 1, 0xff, 0xfe, '\n'})
	l.write(id, 1, chunk(1, "stdout", "one\ntw"), chunk(2, "stderr", "oops\n"), chunk(3, "stdout", "o\n"))
	since := time.Now().Add(time.Second)
	later := chunk(4, "stdout", "three\n"+binary)
	later.Time = timestamppb.New(since.Add(time.Second))
	l.write(id, 1, later, &registryv1.LogChunk{Seq: 5, Stream: "stderr", Dropped: 7, Time: timestamppb.New(since.Add(time.Second))}, eof(6))
	all := "one\ntwoops\no\nthree\n" + binary

	cases := map[string]struct {
		r    *registryv1.ReadLogsRequest
		want string
	}{
		"all":            {&registryv1.ReadLogsRequest{}, all},
		"the attempt":    {&registryv1.ReadLogsRequest{Attempt: 1}, all},
		"follow":         {&registryv1.ReadLogsRequest{Attempt: 1, Follow: true}, all},
		"stderr":         {&registryv1.ReadLogsRequest{Stream: "stderr"}, "oops\n"},
		"after":          {&registryv1.ReadLogsRequest{AfterSeq: 3}, "three\n" + binary},
		"since":          {&registryv1.ReadLogsRequest{Since: timestamppb.New(since)}, "three\n" + binary},
		"tail 1":         {&registryv1.ReadLogsRequest{Tail: 1}, binary},
		"tail 2":         {&registryv1.ReadLogsRequest{Tail: 2}, "three\n" + binary},
		"tail 3":         {&registryv1.ReadLogsRequest{Tail: 3}, "two\nthree\n" + binary},
		"tail 4":         {&registryv1.ReadLogsRequest{Tail: 4}, "twoops\no\nthree\n" + binary},
		"tail too many":  {&registryv1.ReadLogsRequest{Tail: 100}, all},
		"tail of stderr": {&registryv1.ReadLogsRequest{Tail: 5, Stream: "stderr", Follow: true, Attempt: 1}, "oops\n"},
		"tail of stdout": {&registryv1.ReadLogsRequest{Tail: 3, Stream: "stdout"}, "two\nthree\n" + binary},
	}
	for name, c := range cases {
		c.r.JobId = id
		if got := w.text(c.r); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: id[:30]})
	if err != nil || chunks[4].GetDropped() != 7 || !chunks[5].GetEof() {
		t.Fatalf("%v %v", chunks, err)
	}
	refused := map[string]struct {
		r    *registryv1.ReadLogsRequest
		kind fault.Kind
	}{
		"unknown job":     {&registryv1.ReadLogsRequest{JobId: "0198c0de-0000-7000-8000-000000000000", Follow: true}, fault.NotFound},
		"no such prefix":  {&registryv1.ReadLogsRequest{JobId: "ffffff"}, fault.NotFound},
		"unknown attempt": {&registryv1.ReadLogsRequest{JobId: id, Attempt: 2}, fault.NotFound},
		"stream":          {&registryv1.ReadLogsRequest{JobId: id, Stream: "stdlog"}, fault.Invalid},
		"tail":            {&registryv1.ReadLogsRequest{JobId: id, Tail: -1}, fault.Invalid},
	}
	for name, c := range refused {
		if _, err := w.read(c.r); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSendLogsRefuses(t *testing.T) {
	w := newWorld(t)
	a, b := w.ready(0), w.ready(0)
	id := w.queue(nil)
	a.run(id)
	cases := map[string]struct {
		from   *agent
		chunks []*registryv1.LogChunk
		kind   fault.Kind
	}{
		"a gap":                {a, []*registryv1.LogChunk{chunk(2, "stdout", "x")}, fault.Invalid},
		"a stream":             {a, []*registryv1.LogChunk{chunk(1, "stdlog", "x")}, fault.Invalid},
		"a chunk too large":    {a, []*registryv1.LogChunk{chunk(1, "stdout", strings.Repeat("x", 1<<20+1))}, fault.Invalid},
		"another worker's job": {b, []*registryv1.LogChunk{chunk(1, "stdout", "x")}, fault.Invalid},
		"after the end":        {a, []*registryv1.LogChunk{eof(1), chunk(2, "stdout", "x")}, fault.Invalid},
		"a forged session":     {&agent{w: w, t: t, session: "forged"}, []*registryv1.LogChunk{chunk(1, "stdout", "x")}, fault.Denied},
	}
	for name, c := range cases {
		l := c.from.logsTo(w.replica)
		_ = l.send(id, 1, c.chunks...) // a refused session may be over already
		if _, err := l.ack(); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := w.text(&registryv1.ReadLogsRequest{JobId: id}); got != "" {
		t.Fatalf("something was stored: %q", got)
	}
}

func TestLogLimit(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	l := a.logsTo(w.replica)
	const size, n = 1 << 20, 66
	data := strings.Repeat("x", size)
	acked := make(chan error, 1)
	go func() {
		for seq := int64(0); seq < n+1; {
			var err error
			if seq, err = l.ack(); err != nil {
				acked <- err
				return
			}
		}
		acked <- nil
	}()
	for seq := int64(1); seq <= n; seq++ {
		if err := l.send(id, 1, chunk(seq, "stdout", data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.send(id, 1, eof(n+1)); err != nil {
		t.Fatal(err)
	}
	if err := <-acked; err != nil {
		t.Fatal(err)
	}
	var stored, dropped int64
	chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		stored, dropped = stored+int64(len(c.GetData())), dropped+c.GetDropped()
	}
	if stored != 64<<20 || dropped != 2<<20 {
		t.Fatalf("%d stored, %d dropped", stored, dropped)
	}
}

// TestFollow has readers come at any time while an agent writes, loses its
// stream, and repeats what was not acknowledged, over two registries.
func TestFollow(t *testing.T) {
	w := newWorld(t)
	second := w.start()
	a := w.ready(0)
	id := w.queue(nil)
	const n = 1500
	var want strings.Builder
	line := func(seq int64) string { return fmt.Sprintf("%05d %s\n", seq, strings.Repeat("x", int(seq%97))) }
	for seq := int64(1); seq < n; seq++ {
		want.WriteString(line(seq))
	}
	var readers sync.WaitGroup
	follow := func(name string, attempt int32) {
		readers.Go(func() {
			chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: id, Attempt: attempt, Follow: true})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			for i, c := range chunks {
				if c.GetSeq() != int64(i)+1 {
					t.Errorf("%s: chunk %d is at %d", name, c.GetSeq(), i+1)
					return
				}
			}
			if got := text(chunks); got != want.String() {
				t.Errorf("%s: %d bytes, want %d", name, len(got), want.Len())
			}
		})
	}
	follow("before the attempt", 0)
	a.run(id)
	var acked int64
	for stream := 0; acked < n; stream++ {
		r := w.replica
		if stream%2 == 1 {
			r = second
		}
		l := a.logsTo(r)
		seq, last := acked+1, min(acked+300+rand.Int64N(100), n)
		for seq <= last {
			var chunks []*registryv1.LogChunk
			for range 1 + rand.Int64N(9) {
				switch {
				case seq < n:
					chunks = append(chunks, chunk(seq, []string{"stdout", "stderr"}[seq%2], line(seq)))
				case seq == n:
					chunks = append(chunks, eof(n))
				}
				seq++
			}
			if len(chunks) == 0 {
				break
			}
			if err := l.send(id, 1, chunks...); err != nil {
				t.Fatal(err)
			}
		}
		follow(fmt.Sprintf("at chunk %d", acked), 1)
		// The agent hears some of the acks, then loses the stream.
		for acked < last-100 {
			next, err := l.ack()
			if err != nil {
				t.Fatal(err)
			}
			acked = next
		}
		if last == n {
			for acked < n {
				next, err := l.ack()
				if err != nil {
					t.Fatal(err)
				}
				acked = next
			}
		}
	}
	follow("at the end", 1)
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	readers.Wait()
}

func TestFollowGoesOnToLaterAttempts(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(func(s *job.Spec) { s.Retry.MaxAttempts = 2 })
	got := make(chan string, 1)
	go func() {
		chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: id, Follow: true})
		got <- fmt.Sprint(text(chunks), err)
	}()
	a.run(id)
	l := a.logsTo(w.replica)
	// No eof: the agent could not flush in time. The attempt's end ends it.
	l.write(id, 1, chunk(1, "stdout", "first\n"))
	a.result(exited(id, 1, 1))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	a.run(id)
	l.write(id, 2, chunk(1, "stdout", "second\n"), eof(2))
	a.result(exited(id, 2, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	select {
	case text := <-got:
		if text != "first\nsecond\n<nil>" {
			t.Fatalf("%q", text)
		}
	case <-time.After(patience):
		t.Fatal("the reader does not end with the job")
	}
	// The first attempt's last words come late; they are kept as evidence.
	// Both attempts may come on one stream, without waiting for acks.
	for _, c := range []*registryv1.LogChunk{chunk(2, "stdout", "la"), chunk(3, "stdout", "te\n"), eof(4)} {
		if err := errors.Join(l.send(id, 1, c), l.send(id, 2, chunk(1, "stdout", "second\n"))); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 {
		if _, err := l.ack(); err != nil {
			t.Fatal(err)
		}
	}
	if text := w.text(&registryv1.ReadLogsRequest{JobId: id, Attempt: 1}); text != "first\nlate\n" {
		t.Fatalf("%q", text)
	}
	// A tail of a followed attempt, and a job that ends without ever having had one.
	if text := w.text(&registryv1.ReadLogsRequest{JobId: id, Follow: true, Tail: 1}); text != "second\n" {
		t.Fatalf("%q", text)
	}
	never := w.queue(nil)
	go func() {
		chunks, err := w.read(&registryv1.ReadLogsRequest{JobId: never, Follow: true})
		got <- fmt.Sprint(text(chunks), err)
	}()
	w.requestCancel(never)
	if text := <-got; text != "<nil>" {
		t.Fatalf("%q", text)
	}
}

// TestSlowReader has one reader not read at all while a lot is written.
func TestSlowReader(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	slow, err := w.logs.ReadLogs(ctx, &registryv1.ReadLogsRequest{JobId: id, Follow: true, Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := a.logsTo(w.replica)
	l.write(id, 1, chunk(1, "stdout", "begin"))
	if _, err := slow.Recv(); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte("y"), 32<<10)
	const n = 600
	for seq := int64(2); seq <= n; seq++ {
		l.write(id, 1, &registryv1.LogChunk{Seq: seq, Stream: "stdout", Data: block, Time: timestamppb.Now()})
	}
	l.write(id, 1, eof(n+1))
	next := int64(2)
	for {
		m, err := slow.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range m.GetChunks() {
			if c.GetSeq() != next {
				t.Fatalf("chunk %d, want %d", c.GetSeq(), next)
			}
			next++
		}
	}
	if next != n+2 {
		t.Fatalf("ended before chunk %d", next)
	}
}
