//go:build linux

package logs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"hodei.dev/agent/internal/logs"
	"hodei.dev/agent/internal/registrytest"
	"hodei.dev/agent/internal/run"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func shipper(t *testing.T, r *registrytest.Registry, cfg logs.Config) *logs.Shipper {
	t.Helper()
	cfg.BackoffMin, cfg.BackoffMax = time.Millisecond, 10*time.Millisecond
	authorize := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "hodei-session", registrytest.Secret)
	}
	s := logs.New(r.Client(t), authorize, cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return s
}

func flushed(t *testing.T, st *logs.Stream) {
	t.Helper()
	select {
	case <-st.Flushed():
	case <-time.After(registrytest.Patience):
		t.Fatal("it is never flushed")
	}
}

func chunk(stream string, data []byte) run.Chunk {
	return run.Chunk{Stream: stream, Time: time.Now(), Data: data}
}

// last is the sequence number of the last chunk of a message.
func last(m *registryv1.SendLogsRequest) int64 { return m.GetChunks()[len(m.GetChunks())-1].GetSeq() }

// Streams break after any message, before and after it is stored, and acks are
// partial or lost; what is stored has no gap, and repeats are known by their numbers.
func TestNoGapAndNoLossOverBrokenStreams(t *testing.T) {
	r := registrytest.New(t)
	var mu sync.Mutex
	n := 0
	r.OnLogs = func(*registryv1.SendLogsRequest) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%3 == 0 {
			return errors.New("broken before it is stored")
		}
		return nil
	}
	r.Ack = func(m *registryv1.SendLogsRequest) int64 {
		mu.Lock()
		defer mu.Unlock()
		switch n % 5 {
		case 0:
			return -1 // lost
		case 1:
			return m.GetChunks()[0].GetSeq() // partial
		}
		return last(m)
	}
	s := shipper(t, r, logs.Config{Window: 64 << 10, Batch: 8 << 10, Stall: 100 * time.Millisecond})
	var want bytes.Buffer
	st := s.Open("j", 1)
	for i := range 500 {
		data := bytes.Repeat(fmt.Appendf(nil, "%d ", i), 100)
		want.Write(data)
		if err := st.Write(chunk(run.Stdout, data)); err != nil {
			t.Fatal(err)
		}
	}
	st.Close(0)
	flushed(t, st)
	out := r.Output("j")
	if !bytes.Equal(out.Stdout, want.Bytes()) || out.Gaps != 0 || !out.EOF || out.Last != 501 {
		t.Errorf("%d of %d bytes, %d gaps, last %d", len(out.Stdout), want.Len(), out.Gaps, out.Last)
	}
	t.Logf("%d chunks came again", out.Repeats)
	if st.Bytes() != int64(want.Len()) {
		t.Errorf("%d bytes counted", st.Bytes())
	}
}

func TestWindow(t *testing.T) {
	r := registrytest.New(t)
	open := make(chan struct{})
	r.OnLogs = func(*registryv1.SendLogsRequest) error {
		<-open
		return nil
	}
	s := shipper(t, r, logs.Config{Window: 10_000})
	st := s.Open("j", 1)
	done := make(chan int)
	go func() {
		defer close(done)
		for i := range 10 {
			if st.Write(chunk(run.Stdout, make([]byte, 4000))) != nil {
				return
			}
			done <- i
		}
	}()
	for range 2 {
		<-done
	}
	select {
	case <-done:
		t.Error("more than the window is kept")
	case <-time.After(100 * time.Millisecond):
	}
	close(open)
	for range 8 {
		<-done
	}
	<-done
	st.Close(0)
	flushed(t, st)
	if out := r.Output("j"); len(out.Stdout) != 40_000 {
		t.Errorf("%d bytes", len(out.Stdout))
	}
}

func TestGivingUp(t *testing.T) {
	r := registrytest.New(t)
	open := make(chan struct{})
	r.OnLogs = func(*registryv1.SendLogsRequest) error {
		<-open
		return nil
	}
	s := shipper(t, r, logs.Config{Window: 100})
	blocked := func(st *logs.Stream) chan error {
		t.Helper()
		if err := st.Write(chunk(run.Stdout, make([]byte, 200))); err != nil { // one always fits
			t.Fatal(err)
		}
		c := make(chan error, 1)
		go func() { c <- st.Write(chunk(run.Stderr, make([]byte, 200))) }()
		return c
	}
	st := s.Open("deaf", 1)
	c := blocked(st)
	st.Deafen()
	if err := <-c; !errors.Is(err, logs.ErrAbandoned) {
		t.Errorf("%v", err)
	}
	st.Close(200)

	gone := s.Open("gone", 1)
	c = blocked(gone)
	gone.Abandon()
	if err := <-c; !errors.Is(err, logs.ErrAbandoned) {
		t.Errorf("%v", err)
	}
	flushed(t, gone)
	gone.Close(0)
	close(open)
	flushed(t, st)
	if out := r.Output("deaf"); len(out.Stdout) != 200 || out.Dropped != 200 || !out.EOF {
		t.Errorf("%+v", out)
	}
}

// A registry that never acknowledges must not fill the memory.
func TestTooManyThatLag(t *testing.T) {
	r := registrytest.New(t)
	r.Ack = func(*registryv1.SendLogsRequest) int64 { return -1 }
	s := shipper(t, r, logs.Config{MaxStreams: 2, Stall: time.Hour})
	var all []*logs.Stream
	for i := range 3 {
		st := s.Open(fmt.Sprint("j", i), 1)
		st.Close(0)
		all = append(all, st)
	}
	flushed(t, all[0])
	select {
	case <-all[2].Flushed():
		t.Error("the newest was given up")
	default:
	}
}

func TestStalledStreamIsReplaced(t *testing.T) {
	r := registrytest.New(t)
	var mu sync.Mutex
	messages := 0
	r.Ack = func(m *registryv1.SendLogsRequest) int64 {
		mu.Lock()
		defer mu.Unlock()
		if messages++; messages == 1 {
			return -1
		}
		return last(m)
	}
	s := shipper(t, r, logs.Config{Stall: 50 * time.Millisecond})
	st := s.Open("j", 1)
	st.Close(0)
	flushed(t, st)
	if out := r.Output("j"); out.Repeats != 1 || out.Gaps != 0 {
		t.Errorf("%+v", out)
	}
}

// One attempt whose output is refused does not hold up another one's for ever.
func TestRefusedOutputIsGivenUp(t *testing.T) {
	r := registrytest.New(t)
	r.OnLogs = func(m *registryv1.SendLogsRequest) error {
		if m.GetJobId() == "poison" {
			return status.Error(codes.FailedPrecondition, "not yours")
		}
		return nil
	}
	s := shipper(t, r, logs.Config{})
	poison, good := s.Open("poison", 1), s.Open("good", 1)
	if err := poison.Write(chunk(run.Stdout, []byte("x"))); err != nil {
		t.Fatal(err)
	}
	poison.Close(0)
	if err := good.Write(chunk(run.Stdout, []byte("y"))); err != nil {
		t.Fatal(err)
	}
	flushed(t, poison)
	good.Close(0)
	flushed(t, good)
	if out := r.Output("good"); string(out.Stdout) != "y" || !out.EOF || out.Gaps > 0 {
		t.Errorf("%+v", out)
	}
}
