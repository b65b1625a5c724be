package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
)

// clinic is a platform as the doctor finds it.
type clinic struct {
	auditv1.UnimplementedDeadLetterServiceServer
	platformv1.UnimplementedStatusServiceServer
	relayv1.UnimplementedCompletenessServiceServer

	services   func(look int) []*platformv1.ServiceStatus
	letters    map[string]int64
	comparison *relayv1.Comparison
	refuse     error // of a comparison

	mu     sync.Mutex // guards what follows
	looks  int
	epochs []rpc.Call // who has begun one
}

func well() *clinic {
	return &clinic{
		services: func(int) []*platformv1.ServiceStatus {
			return []*platformv1.ServiceStatus{
				{Name: "relay", Ready: true, Position: 9, Head: 9, Figures: map[string]int64{"circuits_open": 0}},
				{Name: "timeout-monitor", Ready: true, Position: 9, Head: 9, Figures: map[string]int64{"armed": 4}},
			}
		},
		comparison: &relayv1.Comparison{
			LogHead: 9, StreamFirst: 1, StreamHead: 9, Compared: 9, Agrees: true, StreamCreated: timestamppb.New(time.Unix(5, 0)),
			Positions: []*relayv1.Position{{Schema: "audit", Name: "audit", Position: 9}},
		},
	}
}

func (c *clinic) GetStatus(_ context.Context, req *platformv1.GetStatusRequest) (*platformv1.GetStatusResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looks == 0 && !req.GetExamine() {
		return nil, fault.New(fault.Invalid, "the first look does not examine")
	}
	c.looks++
	return &platformv1.GetStatusResponse{Services: c.services(c.looks)}, nil
}

func (c *clinic) ListDeadLetters(context.Context, *auditv1.ListDeadLettersRequest) (*auditv1.ListDeadLettersResponse, error) {
	return &auditv1.ListDeadLettersResponse{Counts: c.letters}, nil
}

func (c *clinic) Compare(_ *relayv1.CompareRequest, stream grpc.ServerStreamingServer[relayv1.CompareResponse]) error {
	if c.refuse != nil {
		return c.refuse
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.epochs) > 0 {
		c.comparison.Agrees, c.comparison.StreamCreated = true, timestamppb.New(time.Unix(6, 0))
	}
	if err := stream.Send(&relayv1.CompareResponse{Comparison: &relayv1.Comparison{Phase: "stream and log", Checked: 3, Total: 9}}); err != nil {
		return err
	}
	return stream.Send(&relayv1.CompareResponse{Comparison: c.comparison, Done: true})
}

func (c *clinic) BeginEpoch(ctx context.Context, req *relayv1.BeginEpochRequest) (*relayv1.BeginEpochResponse, error) {
	if c.comparison.GetAgrees() {
		return nil, fault.New(fault.Precondition, "stream and log agree").WithCode("EPOCH_NOT_NEEDED", "see `hodei doctor`")
	}
	m := &relayv1.BeginEpochResponse{
		Reason: "the log ends at 7", StreamCreated: c.comparison.GetStreamCreated(), StreamHead: 9, LogHead: 7, Agreed: 7, Base: 5,
		GivenUp: []*relayv1.Difference{{Position: 8, Type: "JobQueued", Aggregate: "job/j", EventId: "e-8"}},
	}
	if req.GetDryRun() {
		return m, nil
	}
	if !req.GetStreamCreated().AsTime().Equal(c.comparison.GetStreamCreated().AsTime()) {
		return nil, fault.New(fault.Precondition, "another stream")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epochs = append(c.epochs, rpc.CallFrom(ctx))
	m.EventId = "e-10"
	return m, nil
}

func (c *clinic) open(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, addr: "unix://" + filepath.Join(t.TempDir(), "s")}
	r, err := rpc.NewServer(rpc.Options{Listen: s.addr, Drain: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	auditv1.RegisterDeadLetterServiceServer(r.GRPC(), c)
	platformv1.RegisterStatusServiceServer(r.GRPC(), c)
	relayv1.RegisterCompletenessServiceServer(r.GRPC(), c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func TestDoctorFindsNothing(t *testing.T) {
	got := well().open(t).run("doctor")
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	contains(t, got.stdout, "services       ok       2 of 2 ready", "event log      ok       9 positions", "4 armed, 0 overdue", "all is well")
}

func TestDoctorSaysWhatIsOff(t *testing.T) {
	behind := func(position int64) func(int) []*platformv1.ServiceStatus {
		return func(look int) []*platformv1.ServiceStatus {
			return []*platformv1.ServiceStatus{{Name: "audit", Ready: true, Position: 3 + position*int64(look), Head: 100, Lag: 50, Figures: map[string]int64{"armed": 1, "circuits_open": 0}}}
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(c *clinic)
		code  int
		want  []string
	}{
		{"a schema that is behind", func(c *clinic) {
			c.services = func(int) []*platformv1.ServiceStatus {
				return []*platformv1.ServiceStatus{{Name: "audit", Problems: map[string]string{"postgres": "schema audit is at version 1, this build needs 2"}, Figures: map[string]int64{"armed": 1}}}
			}
		}, 1, []string{"services       off", "what to do: bring the database up to date: `hodei migrate`"}},
		{"a service that stands still", func(c *clinic) { c.services = behind(0) }, 1, []string{"lags           off", "50 events behind and stands at position 3"}},
		{"one that catches up", func(c *clinic) { c.services = behind(10) }, 0, []string{"catching up: audit 50", "all is well"}},
		{"an open breaker", func(c *clinic) {
			c.services = func(int) []*platformv1.ServiceStatus {
				return []*platformv1.ServiceStatus{{
					Name: "dispatcher", Ready: true, Figures: map[string]int64{"armed": 1, "circuits_open": 1},
					Problems: map[string]string{"circuit of provider lab": "OPEN since noon: no worker becomes READY"},
					Findings: []*platformv1.Finding{{Check: "breakers", Severity: "warning", Subject: "provider/lab", Problem: "its circuit is OPEN"}},
				}}
			}
		}, 1, []string{"services       ok ", "breakers       off      1 open", "breakers (warning): provider/lab: its circuit is OPEN"}},
		{"dead letters", func(c *clinic) { c.letters = map[string]int64{"audit": 2} }, 1, []string{"dead letters   off      audit=2", "`hodei dlq list`"}},
		{"dead letters that grow", func(c *clinic) {
			c.services = func(int) []*platformv1.ServiceStatus {
				return []*platformv1.ServiceStatus{{
					Name: "relay", Ready: true, Figures: map[string]int64{"armed": 1, "circuits_open": 0},
					Problems: map[string]string{"dead letters of audit": "12 are open, the alert is at 10"},
					Findings: []*platformv1.Finding{{Check: "dead letters", Severity: "error", Subject: "consumer audit of audit", Problem: "12 are open, the alert is at 10"}},
				}}
			}
		}, 1, []string{"services       ok ", "dead letters   off", "dead letters (error): consumer audit of audit: 12 are open"}},
		{"a stuck job", func(c *clinic) {
			c.services = func(int) []*platformv1.ServiceStatus {
				return []*platformv1.ServiceStatus{{
					Name: "timeout-monitor", Ready: true, Figures: map[string]int64{"armed": 1, "overdue": 1},
					Findings: []*platformv1.Finding{{Check: "deadlines", Severity: "error", Subject: "job/j\x1b[31m", Problem: "its deadline has passed", Action: "look"}},
				}}
			}
		}, 1, []string{"deadlines      off      1 armed, 1 overdue", `job/j\x1b[31m: its deadline has passed`, "what to do: look"}},
		{"a check that this build does not know", func(c *clinic) {
			c.comparison.Findings = []*platformv1.Finding{{Check: "moon phase", Severity: "warning", Problem: "full"}}
		}, 1, []string{"moon phase     off      full"}},
		{"a relay that cannot compare", func(c *clinic) { c.refuse = fault.New(fault.Unavailable, "nats is away").WithCode("X", "") }, 3, []string{"events stream  unknown  nats is away", "could not be made"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clinic := well()
			c.spoil(clinic)
			got := clinic.open(t).run("doctor")
			if got.code != c.code {
				t.Errorf("code %d, want %d; stderr %q", got.code, c.code, got.stderr)
			}
			contains(t, got.stdout, c.want...)
		})
	}
}

func TestDoctorJSON(t *testing.T) {
	c := well()
	c.letters = map[string]int64{"audit": 2}
	got := c.open(t).run("doctor", "-o", "json")
	var m struct {
		Well       bool
		Checks     []check
		Comparison map[string]any
	}
	if err := json.Unmarshal([]byte(got.stdout), &m); err != nil {
		t.Fatalf("%v: %s", err, got.stdout)
	}
	if got.code != 1 || m.Well || len(m.Checks) < 8 || m.Comparison["log_head"] == nil {
		t.Errorf("code %d: %s", got.code, got.stdout)
	}
}

func TestNewEpoch(t *testing.T) {
	lost := func() *clinic {
		c := well()
		c.comparison.Agrees = false
		return c
	}
	c := lost()
	s := c.open(t)
	if got := s.run("doctor", "--new-epoch"); got.code != 2 || len(c.epochs) != 0 {
		t.Errorf("without a terminal and --yes: %+v, %d epochs", got, len(c.epochs))
	}
	got := s.run("doctor", "--new-epoch", "--dry-run")
	if got.code != 0 || len(c.epochs) != 0 {
		t.Errorf("dry run: %+v", got)
	}
	contains(t, got.stdout, "both agree up to", "7", "JobQueued  job/j  e-8", "begins after position 5")
	got = s.run("doctor", "--new-epoch", "--yes")
	if got.code != 0 || len(c.epochs) != 1 || c.epochs[0].Actor == "" {
		t.Errorf("%+v, epochs %+v", got, c.epochs)
	}
	contains(t, got.stderr, "recorded as event e-10")
	if got := s.run("doctor", "--new-epoch", "--yes"); got.code != 1 {
		t.Errorf("a needless one: %+v", got)
	}
	if got := s.run("doctor", "--yes"); got.code != 2 {
		t.Errorf("--yes alone: %+v", got)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if onTerminal(f) || onTerminal("text") {
		t.Error("taken for a terminal")
	}
}
