package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// ago is a time that tables show as a round age.
func ago(d time.Duration) *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(-d - d/1000))
}

func (w *world) ListWorkers(ctx context.Context, req *registryv1.ListWorkersRequest) (*registryv1.ListWorkersResponse, error) {
	w.saw(ctx, req)
	return &registryv1.ListWorkersResponse{Workers: w.workers}, nil
}

func (w *world) GetWorker(ctx context.Context, req *registryv1.GetWorkerRequest) (*registryv1.GetWorkerResponse, error) {
	w.saw(ctx, req)
	if len(w.workers) == 0 {
		return nil, fault.New(fault.NotFound, "there is no worker %s", req.GetWorkerId())
	}
	return &registryv1.GetWorkerResponse{Worker: w.workers[0]}, nil
}

func (w *world) WatchWorkers(_ *registryv1.WatchWorkersRequest, stream grpc.ServerStreamingServer[registryv1.WatchWorkersResponse]) error {
	for i, state := range []string{"READY", "BUSY", "TERMINATED"} {
		err := stream.Send(&registryv1.WatchWorkersResponse{Worker: &registryv1.Worker{Id: "w-1", State: state, Version: int64(i + 1), Reason: "because"}})
		if err != nil {
			return err
		}
		w.mu.Lock()
		broken := w.watchBreak > 0
		w.watchBreak--
		w.mu.Unlock()
		if broken {
			return fault.New(fault.Unavailable, "going away")
		}
	}
	return nil
}

func (w *world) DrainWorker(ctx context.Context, req *registryv1.DrainWorkerRequest) (*registryv1.DrainWorkerResponse, error) {
	w.saw(ctx, req)
	state := "DRAINING"
	if req.GetUndo() {
		state = "BUSY"
	}
	return &registryv1.DrainWorkerResponse{Worker: &registryv1.Worker{Id: req.GetWorkerId(), State: state}}, nil
}

func (w *world) TerminateWorker(ctx context.Context, req *registryv1.TerminateWorkerRequest) (*registryv1.TerminateWorkerResponse, error) {
	w.saw(ctx, req)
	return &registryv1.TerminateWorkerResponse{Worker: &registryv1.Worker{Id: req.GetWorkerId(), State: "TERMINATING"}}, nil
}

func (w *world) aProvider() *provisionerv1.Provider {
	return &provisionerv1.Provider{
		Id: "p-1", Name: "local", Kind: "process", State: "ENABLED", Health: "HEALTHY", Workers: 2, WorkersIdle: 1, WorkersBusy: 1,
		CpuLimits: "enforced", MemoryLimits: "reserved only", ReservedCpuMillis: 500, ReservedMemoryBytes: 1 << 28, Isolation: "cgroup v2",
		Spec:    &provisionerv1.ProviderSpec{Name: "local", Kind: "process", MaxWorkers: 4, CpuMillis: 2000, MemoryBytes: 8 << 30, Labels: map[string]string{"zone": "eu", "gpu": ""}},
		Alerts:  []*provisionerv1.ProviderAlert{{Alert: "CIRCUIT_OPEN", Reason: "no disk", Since: ago(time.Hour)}},
		Circuit: &provisionerv1.ProviderCircuit{State: "HALF_OPEN", Reason: "no disk", OpenedAt: ago(time.Hour), Openings: 2, Probe: "w-7"},
	}
}

func (w *world) RegisterProvider(ctx context.Context, req *provisionerv1.RegisterProviderRequest) (*provisionerv1.RegisterProviderResponse, error) {
	w.saw(ctx, req)
	if req.GetSpec().GetKind() == "moon" {
		var f fault.Fields
		f.Add("kind", "%q: process or external", "moon")
		return nil, f.Err("the provider")
	}
	return &provisionerv1.RegisterProviderResponse{Provider: w.aProvider()}, nil
}

func (w *world) ListProviders(context.Context, *provisionerv1.ListProvidersRequest) (*provisionerv1.ListProvidersResponse, error) {
	return &provisionerv1.ListProvidersResponse{Providers: []*provisionerv1.Provider{w.aProvider()}}, nil
}

func (w *world) GetProvider(context.Context, *provisionerv1.GetProviderRequest) (*provisionerv1.GetProviderResponse, error) {
	return &provisionerv1.GetProviderResponse{Provider: w.aProvider()}, nil
}

func (w *world) RemoveProvider(ctx context.Context, req *provisionerv1.RemoveProviderRequest) (*provisionerv1.RemoveProviderResponse, error) {
	w.saw(ctx, req)
	if w.door != nil {
		close(w.door.removed)
	}
	p := w.aProvider()
	p.State = "REMOVED"
	return &provisionerv1.RemoveProviderResponse{Provider: p}, nil
}

func (w *world) IssueWorkerToken(ctx context.Context, req *provisionerv1.IssueWorkerTokenRequest) (*provisionerv1.IssueWorkerTokenResponse, error) {
	w.saw(ctx, req)
	addr := "127.0.0.1:7434"
	if w.door != nil {
		addr = w.door.addr
	}
	return &provisionerv1.IssueWorkerTokenResponse{WorkerId: "w-9", Token: "t-secret", AgentAddress: addr, ExpiresAt: timestamppb.New(time.Unix(1777636800, 0))}, nil
}

func (w *world) SearchEvents(ctx context.Context, req *auditv1.SearchEventsRequest) (*auditv1.SearchEventsResponse, error) {
	w.saw(ctx, req)
	from, _ := strconv.Atoi(req.GetPageToken()) // no token is 0
	to := min(from+int(min(req.GetPageSize(), 2)), len(w.events))
	resp := &auditv1.SearchEventsResponse{Events: w.events[from:to]}
	if to < len(w.events) {
		resp.NextPageToken = fmt.Sprint(to)
	}
	return resp, nil
}

func (w *world) CountEvents(ctx context.Context, req *auditv1.CountEventsRequest) (*auditv1.CountEventsResponse, error) {
	w.saw(ctx, req)
	return &auditv1.CountEventsResponse{Counts: map[string]int64{"JobQueued": 2, "JobCreated": 2}, Total: 4}, nil
}

func (w *world) TraceEvents(ctx context.Context, req *auditv1.TraceEventsRequest) (*auditv1.TraceEventsResponse, error) {
	w.saw(ctx, req)
	resp := &auditv1.TraceEventsResponse{CorrelationId: "c-1"}
	for i, e := range w.events {
		resp.Nodes = append(resp.Nodes, &auditv1.TraceNode{Event: e, Depth: int32(i)})
	}
	return resp, nil
}

func (w *world) ListDeadLetters(ctx context.Context, req *auditv1.ListDeadLettersRequest) (*auditv1.ListDeadLettersResponse, error) {
	w.saw(ctx, req)
	return &auditv1.ListDeadLettersResponse{
		DeadLetters: []*auditv1.DeadLetter{{Id: "3f2a", State: "DEAD", Service: "audit", Fingerprint: "9c0ffee12345", Error: "cannot decode\x1b[31m", Deliveries: 5, Event: w.events[0], LastAt: ago(time.Minute)}},
		Counts:      map[string]int64{"audit": 3},
	}, nil
}

func (w *world) GetDeadLetter(_ context.Context, req *auditv1.GetDeadLetterRequest) (*auditv1.GetDeadLetterResponse, error) {
	return &auditv1.GetDeadLetterResponse{
		DeadLetter: &auditv1.DeadLetter{Id: req.GetId(), Service: "audit", Error: "cannot decode", Event: w.events[0]},
		Headers:    map[string]string{"ce-id": "e-1"}, Raw: []byte(`{"a":1}`),
	}, nil
}

func (w *world) ReplayDeadLetters(req *auditv1.ReplayDeadLettersRequest, out grpc.ServerStreamingServer[auditv1.ReplayDeadLettersResponse]) error {
	w.saw(out.Context(), req)
	for i, result := range []string{"REPLAYED", "FAILED_AGAIN"} {
		if i == 1 && len(req.GetFilter().GetIds()) > 0 {
			return nil
		}
		o := &auditv1.DeadLetterOutcome{DeadLetter: &auditv1.DeadLetter{Id: "3f2a", Service: "audit", Event: w.events[0]}, Result: result, Detail: "why", Done: int32(i + 1), Total: 2}
		if err := out.Send(&auditv1.ReplayDeadLettersResponse{Outcome: o}); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) DiscardDeadLetters(req *auditv1.DiscardDeadLettersRequest, out grpc.ServerStreamingServer[auditv1.DiscardDeadLettersResponse]) error {
	w.saw(out.Context(), req)
	return out.Send(&auditv1.DiscardDeadLettersResponse{Outcome: &auditv1.DeadLetterOutcome{
		DeadLetter: &auditv1.DeadLetter{Id: "3f2a", Service: "audit", Event: w.events[0]}, Result: "DISCARDED", Done: 1, Total: 1,
	}})
}

func (w *world) GetStatus(context.Context, *platformv1.GetStatusRequest) (*platformv1.GetStatusResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := int64(len(w.specs))
	audit := &platformv1.ServiceStatus{Name: "audit", Ready: true, Position: 5 * n, Head: 6 * n, Lag: n, Role: "active", StartedAt: ago(time.Hour)}
	if slices.ContainsFunc(w.specs, func(s *schedulerv1.JobSpec) bool { return s.GetName() == "unwell" }) {
		audit.Ready, audit.Problems = false, map[string]string{"nats": "away"}
	}
	return &platformv1.GetStatusResponse{Services: []*platformv1.ServiceStatus{
		audit,
		{Name: "relay", Ready: true, Position: 6 * n, Head: 6 * n, Figures: map[string]int64{"process_id": 1, "process_cpu_ms": 2 * n}},
	}}, nil
}

// door is a fake agents' door that gives each agent one job and then, once the
// provider is removed, its end.
type door struct {
	registryv1.UnimplementedWorkerAgentServiceServer
	addr    string
	removed chan struct{}

	mu      sync.Mutex // guards results
	results int
}

func (d *door) Register(_ context.Context, req *registryv1.RegisterRequest) (*registryv1.RegisterResponse, error) {
	if req.GetToken() != "t-secret" || req.GetNonce() == "" {
		return nil, fault.New(fault.Denied, "a forged token")
	}
	return &registryv1.RegisterResponse{Session: "s-1", HeartbeatInterval: "1ms"}, nil
}

func (d *door) Connect(stream grpc.BidiStreamingServer[registryv1.ConnectRequest, registryv1.ConnectResponse]) error {
	first, err := stream.Recv()
	if err != nil || first.GetHello() == nil {
		return fault.New(fault.Invalid, "no hello: %v", err)
	}
	send := func(m *registryv1.ConnectResponse) { err = stream.Send(m) }
	send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Welcome{Welcome: &registryv1.Welcome{Epoch: 1}}})
	send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Run{Run: &registryv1.Run{JobId: "j", Attempt: 1}}})
	beats := 0
	for err == nil {
		var m *registryv1.ConnectRequest
		if m, err = stream.Recv(); err != nil {
			return err
		}
		switch {
		case m.GetAccepted() != nil:
			send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Start{Start: &registryv1.Start{JobId: "j", Attempt: 1}}})
		case m.GetResult() != nil:
			d.mu.Lock()
			d.results++
			d.mu.Unlock()
			send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_ResultAck{ResultAck: &registryv1.ResultAck{JobId: "j", Attempt: 1}}})
			<-d.removed
		case m.GetHeartbeat() != nil:
			if beats++; beats > 1 {
				send(&registryv1.ConnectResponse{Message: &registryv1.ConnectResponse_Terminate{Terminate: &registryv1.Terminate{Reason: "removed"}}})
			}
		}
	}
	return err
}
