package registrytest

import (
	"testing"

	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// Say sends one message.
func (s *Stream) Say(t *testing.T, m *registryv1.ConnectResponse) {
	t.Helper()
	s.out.Lock()
	defer s.out.Unlock()
	if err := s.server.Send(m); err != nil {
		t.Fatal(err)
	}
}

// Welcome attaches the session.
func (s *Stream) Welcome(t *testing.T, epoch int64) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Welcome{Welcome: &registryv1.Welcome{Epoch: epoch}}})
}

// Run hands an attempt over.
func (s *Stream) Run(t *testing.T, r *registryv1.Run, traceparent string) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Run{Run: r}, Traceparent: traceparent})
}

// Start gives the permission to start.
func (s *Stream) Start(t *testing.T, job string, attempt int32) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Start{Start: &registryv1.Start{JobId: job, Attempt: attempt}}})
}

// Cancel asks an attempt to end.
func (s *Stream) Cancel(t *testing.T, job string, attempt int32, reason string) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Cancel{Cancel: &registryv1.Cancel{JobId: job, Attempt: attempt, Reason: reason}}})
}

// Drop takes an attempt away.
func (s *Stream) Drop(t *testing.T, job string, attempt int32) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Drop{Drop: &registryv1.Drop{JobId: job, Attempt: attempt, Reason: "stale"}}})
}

// AckResult acknowledges a result.
func (s *Stream) AckResult(t *testing.T, job string, attempt int32) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_ResultAck{ResultAck: &registryv1.ResultAck{JobId: job, Attempt: attempt}}})
}

// Terminate ends the worker's life.
func (s *Stream) Terminate(t *testing.T, reason string) {
	t.Helper()
	s.Say(t, &registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Terminate{Terminate: &registryv1.Terminate{Reason: reason}}})
}

// Hello expects a Hello.
func (s *Stream) Hello(t *testing.T) *registryv1.Hello {
	t.Helper()
	m := s.Receive(t)
	if m.GetHello() == nil {
		t.Fatalf("got %v, want Hello", m)
	}
	return m.GetHello()
}

// Accepted expects that an attempt is accepted.
func (s *Stream) Accepted(t *testing.T, job string, attempt int32) {
	t.Helper()
	m := s.Receive(t)
	if a := m.GetAccepted(); a == nil || a.GetJobId() != job || a.GetAttempt() != attempt {
		t.Fatalf("got %v, want Accepted of %s/%d", m, job, attempt)
	}
}

// Refused expects that an attempt is refused and returns why.
func (s *Stream) Refused(t *testing.T, job string, attempt int32) string {
	t.Helper()
	m := s.Receive(t)
	if a := m.GetRefused(); a == nil || a.GetJobId() != job || a.GetAttempt() != attempt {
		t.Fatalf("got %v, want Refused of %s/%d", m, job, attempt)
	}
	return m.GetRefused().GetReason()
}

// Result expects the result of an attempt.
func (s *Stream) Result(t *testing.T, job string, attempt int32) *registryv1.Result {
	t.Helper()
	m := s.Receive(t)
	if a := m.GetResult(); a == nil || a.GetJobId() != job || a.GetAttempt() != attempt {
		t.Fatalf("got %v, want Result of %s/%d", m, job, attempt)
	}
	return m.GetResult()
}

// Stopping expects that the agent stops and returns why.
func (s *Stream) Stopping(t *testing.T) string {
	t.Helper()
	m := s.Receive(t)
	if m.GetStopping() == nil {
		t.Fatalf("got %v, want Stopping", m)
	}
	return m.GetStopping().GetReason()
}

// Closed expects that the agent says nothing more, and ends the stream.
func (s *Stream) Closed(t *testing.T) {
	t.Helper()
	if m := s.Receive(t); m != nil {
		t.Fatalf("got %v after the goodbye", m)
	}
	s.Cut(nil)
}
