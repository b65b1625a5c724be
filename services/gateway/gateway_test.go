package gateway_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/gateway"
)

// jobs is a scheduler that says what it was asked.
type jobs struct {
	schedulerv1.UnimplementedJobServiceServer
	platformv1.UnimplementedStatusServiceServer
}

func (jobs) GetJob(ctx context.Context, r *schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
	if r.GetJobId() == "missing" {
		return nil, fault.New(fault.NotFound, "there is no job missing").WithCode("NOT_FOUND", "look in the list")
	}
	call := rpc.CallFrom(ctx)
	return &schedulerv1.GetJobResponse{Job: &schedulerv1.Job{Id: r.GetJobId(), CorrelationId: call.CorrelationID, QueuedBy: call.Actor}}, nil
}

func (jobs) QueueJobs(s grpc.BidiStreamingServer[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse]) error {
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&schedulerv1.QueueJobsResponse{Results: []*schedulerv1.QueueJobsResult{{JobId: r.GetSpecs()[0].GetName()}}}); err != nil {
			return err
		}
	}
}

func (jobs) GetStatus(context.Context, *platformv1.GetStatusRequest) (*platformv1.GetStatusResponse, error) {
	return &platformv1.GetStatusResponse{Services: []*platformv1.ServiceStatus{{Name: "scheduler", Ready: true}}}, nil
}

// start runs a gateway whose scheduler, registry, provisioner and audit are one
// fake, and whose other services are not there.
func start(t *testing.T) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	sock := func(name string) string { return "unix://" + filepath.Join(dir, name) }
	fake, err := rpc.NewServer(rpc.Options{Listen: sock("fake")})
	if err != nil {
		t.Fatal(err)
	}
	schedulerv1.RegisterJobServiceServer(fake.GRPC(), jobs{})
	platformv1.RegisterStatusServiceServer(fake.GRPC(), jobs{})

	cfg := gateway.Default()
	cfg.Listen = sock("gw")
	cfg.ShutdownGrace = config.Duration(10 * time.Second)
	cfg.Scheduler, cfg.Registry, cfg.Provisioner, cfg.Audit = sock("fake"), sock("fake"), sock("fake"), sock("fake")
	cfg.Dispatcher, cfg.TimeoutMonitor, cfg.Relay = sock("none"), sock("none"), sock("none")

	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "gateway", LogLevel: "error", LogFormat: "text", LogWriter: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	env := process.Env{Log: tel.Log, Tel: tel, Health: process.NewHealth(nil)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- fake.Run(ctx) }()
	go func() { done <- gateway.Run(ctx, cfg, env) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("stopping: %v", err)
			}
		}
	})
	if err := env.Health.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestCallsReachTheirService(t *testing.T) {
	conn := start(t)
	client := schedulerv1.NewJobServiceClient(conn)
	ctx := rpc.WithCall(t.Context(), rpc.Call{CorrelationID: "corr-1", Actor: "user/ann"})

	got, err := client.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: "j"})
	if err != nil {
		t.Fatal(err)
	}
	if j := got.GetJob(); j.GetId() != "j" || j.GetCorrelationId() != "corr-1" || j.GetQueuedBy() != "user/ann" {
		t.Errorf("%v", j)
	}

	_, err = client.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: "missing"})
	var fe *fault.Error
	if !errors.As(err, &fe) || fe.Kind != fault.NotFound || fe.Code != "NOT_FOUND" || fe.Advice != "look in the list" {
		t.Errorf("an error has lost its details on the way: %#v", err)
	}

	stream, err := client.QueueJobs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := stream.Send(&schedulerv1.QueueJobsRequest{Specs: []*schedulerv1.JobSpec{{Name: name}}}); err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil || r.GetResults()[0].GetJobId() != name {
			t.Fatalf("%v %v", r, err)
		}
	}
}

func TestTheAgentsDoorIsNotHere(t *testing.T) {
	_, err := registryv1.NewWorkerTokenServiceClient(start(t)).IssueToken(t.Context(), &registryv1.IssueTokenRequest{})
	if err == nil || !strings.Contains(err.Error(), "unknown service") {
		t.Errorf("%v", err)
	}
}

func TestStatusNamesWhoIsAway(t *testing.T) {
	resp, err := platformv1.NewStatusServiceClient(start(t)).GetStatus(t.Context(), &platformv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	away := map[string]bool{}
	for _, s := range resp.GetServices() {
		away[s.GetName()] = s.GetUnreachable()
	}
	if len(resp.GetServices()) != 7 || away["scheduler"] || !away["relay"] || !away["dispatcher"] || !away["timeout-monitor"] {
		t.Errorf("%v", resp)
	}
}

func TestHealthAndReflectionForAll(t *testing.T) {
	conn := start(t)
	h, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || h.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v %v", h, err)
	}
	stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range r.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{"hodei.scheduler.v1.JobService", "hodei.registry.v1.LogService", "hodei.audit.v1.AuditService", "hodei.platform.v1.StatusService"} {
		if !strings.Contains(strings.Join(names, " "), want) {
			t.Errorf("reflection does not know %s: %v", want, names)
		}
	}
}
