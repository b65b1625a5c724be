//go:build linux

package session

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hodei.dev/agent/internal/registrytest"
	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestRegisterKeepsItsNonce(t *testing.T) {
	r := registrytest.New(t)
	var nonces []string
	r.OnRegister = func(req *registryv1.RegisterRequest) error {
		nonces = append(nonces, req.GetNonce())
		if req.GetWorkerId() != "w1" || req.GetToken() != "token" || req.GetPid() == 0 || req.GetAgentVersion() != "test" {
			t.Errorf("%v", req)
		}
		if len(nonces) < 3 {
			return status.Error(codes.Unavailable, "the answer is lost")
		}
		return nil
	}
	s, err := Register(t.Context(), config(t, r, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if len(nonces) != 3 || nonces[0] == "" || nonces[1] != nonces[0] || nonces[2] != nonces[0] {
		t.Errorf("%q", nonces)
	}
	if s.cfg.Token != "" {
		t.Error("the token is kept")
	}
}

func TestRegisterIsRefused(t *testing.T) {
	r := registrytest.New(t)
	r.OnRegister = func(*registryv1.RegisterRequest) error {
		return status.Error(codes.PermissionDenied, "the registration is refused")
	}
	_, err := Register(t.Context(), config(t, r, t.TempDir()))
	if !errors.Is(err, fault.Denied) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

func TestRegisterEndsWithItsContext(t *testing.T) {
	r := registrytest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.OnRegister = func(*registryv1.RegisterRequest) error {
		cancel()
		return status.Error(codes.Unavailable, "away")
	}
	if _, err := Register(ctx, config(t, r, t.TempDir())); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A session that the registry has forgotten ends after a lease, not at once.
func TestForgottenSession(t *testing.T) {
	r := registrytest.New(t)
	r.Heartbeat, r.Lease = "50ms", "400ms"
	var asked atomic.Int64
	r.OnConnect = func() error {
		asked.Add(1)
		return status.Error(codes.PermissionDenied, "no such session")
	}
	begun := time.Now()
	err := begin(t, r).gone(t)
	if !errors.Is(err, fault.Denied) || asked.Load() < 2 || time.Since(begun) < 400*time.Millisecond {
		t.Errorf("%v after %d tries", err, asked.Load())
	}
}

// Ten megabytes that nobody stores must delay neither a heartbeat nor, for long,
// the result.
func TestFloodDelaysNothing(t *testing.T) {
	r := registrytest.New(t)
	r.Heartbeat, r.Lease = "50ms", "5s"
	open := make(chan struct{})
	r.OnLogs = func(*registryv1.SendLogsRequest) error {
		<-open
		return nil
	}
	a := begin(t, r)
	s, _ := r.Attach(t)
	began := time.Now()
	started(t, s, sh("flood", 1, "head -c 10485760 /dev/zero"))
	for ticks := time.NewTicker(20 * time.Millisecond); len(r.Heartbeats()) < 20; <-ticks.C {
		if time.Since(began) > registrytest.Patience {
			t.Fatal("no heartbeats")
		}
	}
	close(open)
	if res := s.Result(t, "flood", 1); res.GetCategory() != "" || res.GetLogBytes() != 10<<20 {
		t.Errorf("%v", res)
	}
	if out := r.Output("flood"); len(out.Stdout) != 10<<20 || out.Gaps > 0 || !out.EOF {
		t.Errorf("%d bytes, %d gaps", len(out.Stdout), out.Gaps)
	}
	last := began
	for _, at := range r.Heartbeats() {
		if gap := at.Sub(last); gap > time.Second {
			t.Errorf("%v without a heartbeat", gap)
		}
		last = at
	}
	s.AckResult(t, "flood", 1)
	a.leave(t, s)
}

// Where output cannot be stored the result comes all the same.
func TestResultDoesNotWaitForeverForItsOutput(t *testing.T) {
	for name, script := range map[string]string{
		"little, never acknowledged": "echo out", "more than the window": "head -c 3000000 /dev/zero & head -c 6000000 /dev/zero & exit 0",
	} {
		t.Run(name, func(t *testing.T) {
			r := registrytest.New(t)
			var deaf atomic.Bool
			deaf.Store(true)
			r.Ack = func(m *registryv1.SendLogsRequest) int64 {
				if deaf.Load() {
					return -1
				}
				return m.GetChunks()[len(m.GetChunks())-1].GetSeq()
			}
			a := begin(t, r, func(s *Session) { s.limits.flush = 200 * time.Millisecond })
			s, _ := r.Attach(t)
			started(t, s, sh("j", 1, script))
			res := s.Result(t, "j", 1)
			if res.GetCategory() != "" {
				t.Errorf("%v", res)
			}
			s.AckResult(t, "j", 1)
			a.leave(t, s)
			if out := r.Output("j"); out.Gaps > 0 || !out.EOF || out.Dropped != res.GetLogDropped() || int64(len(out.Stdout)) != res.GetLogBytes() {
				t.Errorf("%d bytes, %d dropped, %d gaps; %v", len(out.Stdout), out.Dropped, out.Gaps, res)
			}
		})
	}
}
