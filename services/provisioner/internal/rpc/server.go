// Package rpc serves ProviderService: it translates between the API's messages and
// the use cases, and decides nothing about providers.
package rpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/eventing/event"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	"hodei.dev/services/provisioner/internal/app"
)

// Server is ProviderService. Its fields are set before it serves.
type Server struct {
	provisionerv1.UnimplementedProviderServiceServer
	// Providers are the use cases.
	Providers *app.Providers
	// Meta is the context of what a call appends.
	Meta func(ctx context.Context) event.Meta
}

// RegisterProvider registers or updates a provider; see the API.
func (s *Server) RegisterProvider(ctx context.Context, in *provisionerv1.RegisterProviderRequest) (*provisionerv1.RegisterProviderResponse, error) {
	spec, err := specOf(in.GetSpec())
	if err != nil {
		return nil, err
	}
	v, err := s.Providers.Register(ctx, s.Meta(ctx), spec)
	if err != nil {
		return nil, err
	}
	return &provisionerv1.RegisterProviderResponse{Provider: message(v)}, nil
}

// ListProviders returns the providers by name.
func (s *Server) ListProviders(ctx context.Context, in *provisionerv1.ListProvidersRequest) (*provisionerv1.ListProvidersResponse, error) {
	views, err := s.Providers.List(ctx, in.GetIncludeRemoved())
	if err != nil {
		return nil, err
	}
	out := &provisionerv1.ListProvidersResponse{}
	for _, v := range views {
		out.Providers = append(out.Providers, message(v))
	}
	return out, nil
}

// GetProvider returns one provider, as it is now.
func (s *Server) GetProvider(ctx context.Context, in *provisionerv1.GetProviderRequest) (*provisionerv1.GetProviderResponse, error) {
	v, err := s.Providers.Get(ctx, in.GetProvider())
	if err != nil {
		return nil, err
	}
	return &provisionerv1.GetProviderResponse{Provider: message(v)}, nil
}

// RemoveProvider has a provider make no more workers.
func (s *Server) RemoveProvider(ctx context.Context, in *provisionerv1.RemoveProviderRequest) (*provisionerv1.RemoveProviderResponse, error) {
	v, err := s.Providers.Remove(ctx, s.Meta(ctx), in.GetProvider())
	if err != nil {
		return nil, err
	}
	return &provisionerv1.RemoveProviderResponse{Provider: message(v)}, nil
}

// IssueWorkerToken makes a worker that its operator starts.
func (s *Server) IssueWorkerToken(ctx context.Context, in *provisionerv1.IssueWorkerTokenRequest) (*provisionerv1.IssueWorkerTokenResponse, error) {
	var wrong fault.Fields
	ttl := duration(&wrong, "ttl", in.GetTtl())
	if err := wrong.Err("the token"); err != nil {
		return nil, err
	}
	issued, err := s.Providers.Issue(ctx, s.Meta(ctx), in.GetProvider(), ttl)
	if err != nil {
		return nil, err
	}
	return &provisionerv1.IssueWorkerTokenResponse{
		WorkerId: issued.WorkerID, Token: issued.Token.Value, AgentAddress: issued.Token.AgentAddress,
		ExpiresAt: timestamppb.New(issued.Token.ExpiresAt),
	}, nil
}

// duration reads a Go duration; empty is 0, which stands for the default.
func duration(wrong *fault.Fields, name, text string) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		wrong.Add(name, "%q: write it like 30s, 5m or 1h30m", text)
	case d <= 0:
		wrong.Add(name, "%q: more than 0", text)
	}
	return d
}

func specOf(in *provisionerv1.ProviderSpec) (provider.Spec, error) {
	var wrong fault.Fields
	s := provider.Spec{
		Name: in.GetName(), Kind: provider.Kind(in.GetKind()), MinIdle: int(in.GetMinIdle()), MaxWorkers: int(in.GetMaxWorkers()),
		JobsPerWorker: 1, CPUMillis: in.GetCpuMillis(), MemoryBytes: in.GetMemoryBytes(), RunAs: in.GetRunAs(), Labels: in.GetLabels(),
		IdleTimeout:      unit.Duration(duration(&wrong, "idle_timeout", in.GetIdleTimeout())),
		ScheduledTimeout: unit.Duration(duration(&wrong, "scheduled_timeout", in.GetScheduledTimeout())),
	}
	if in != nil && in.JobsPerWorker != nil {
		s.JobsPerWorker = int(in.GetJobsPerWorker())
	}
	return s, wrong.Err("the provider")
}

func message(v app.View) *provisionerv1.Provider {
	jobs := int32(v.Spec.JobsPerWorker)
	enforced := map[bool]string{true: "enforced", false: "reserved only"}
	out := &provisionerv1.Provider{
		Id: v.ID, Name: v.Spec.Name, Kind: string(v.Spec.Kind), State: string(v.State), Health: string(v.Health), HealthReason: v.HealthReason,
		Spec: &provisionerv1.ProviderSpec{
			Name: v.Spec.Name, Kind: string(v.Spec.Kind), MinIdle: int32(v.Spec.MinIdle), MaxWorkers: int32(v.Spec.MaxWorkers),
			JobsPerWorker: &jobs, CpuMillis: v.Spec.CPUMillis, MemoryBytes: v.Spec.MemoryBytes,
			IdleTimeout: v.Spec.IdleTimeout.String(), ScheduledTimeout: v.Spec.ScheduledTimeout.String(), RunAs: v.Spec.RunAs,
			Labels: v.Spec.Labels,
		},
		CpuLimits: enforced[v.Capabilities.EnforcesCPU], MemoryLimits: enforced[v.Capabilities.EnforcesMemory], Isolation: v.Capabilities.Isolation,
		Workers: int32(v.Workers), WorkersIdle: int32(v.Idle), WorkersBusy: int32(v.Busy),
		ReservedCpuMillis: v.Reserved.CPUMillis, ReservedMemoryBytes: v.Reserved.MemoryBytes,
		RegisteredAt: timestamppb.New(v.RegisteredAt), ChangedAt: timestamppb.New(v.ChangedAt), Version: int64(v.Version),
	}
	for _, a := range v.Alerts {
		out.Alerts = append(out.Alerts, &provisionerv1.ProviderAlert{Alert: string(a.Alert), Reason: a.Reason, Since: timestamppb.New(a.Since)})
	}
	if c := v.Circuit; !c.State.Settled() {
		out.Circuit = &provisionerv1.ProviderCircuit{
			State: string(c.State), Reason: c.Reason, OpenedAt: timestamppb.New(c.OpenedAt), Openings: int32(c.Openings), Probe: c.Probe,
		}
		if !c.RetryAt.IsZero() {
			out.Circuit.RetryAt = timestamppb.New(c.RetryAt)
		}
	}
	return out
}
