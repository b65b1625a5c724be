// Package rpc routes gRPC calls to the services by name, without knowing their
// messages, and collects the state of all services.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/siderolabs/grpc-proxy/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"

	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// Address is where a service is.
type Address struct{ Name, Address string }

// routes says which service owns which gRPC services. What is not here is not
// for clients: the agents' door and the tokens are the registry's own.
var routes = map[string][]protoreflect.ServiceDescriptor{
	"scheduler": {schedulerv1.File_hodei_scheduler_v1_job_proto.Services().ByName("JobService")},
	"registry": {
		registryv1.File_hodei_registry_v1_worker_proto.Services().ByName("WorkerService"),
		registryv1.File_hodei_registry_v1_log_proto.Services().ByName("LogService"),
	},
	"provisioner": {provisionerv1.File_hodei_provisioner_v1_provider_proto.Services().ByName("ProviderService")},
	"audit": {
		auditv1.File_hodei_audit_v1_audit_proto.Services().ByName("AuditService"),
		auditv1.File_hodei_audit_v1_audit_proto.Services().ByName("DeadLetterService"),
	},
	"relay": {relayv1.File_hodei_relay_v1_completeness_proto.Services().ByName("CompletenessService")},
}

// operators are the services that only operators call: the door opens without them.
var operators = map[string]bool{"relay": true}

// Codec hands messages on as bytes and decodes only the gateway's own.
func Codec() grpc.ServerOption { return grpc.ForceServerCodecV2(proxy.Codec()) }

// Backends are the connections to the services.
type Backends struct {
	names []string
	conns map[string]*grpc.ClientConn
}

// Dial makes the connections, in the background: a service that is away is
// found when it comes.
func Dial(addresses []Address, tel *telemetry.Telemetry) (*Backends, error) {
	b := &Backends{conns: map[string]*grpc.ClientConn{}}
	for _, a := range addresses {
		conn, err := rpc.Dial(a.Address, rpc.WithTelemetry(tel), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(proxy.Codec())))
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("service %s at %s: %w", a.Name, a.Address, err)
		}
		b.names = append(b.names, a.Name)
		b.conns[a.Name] = conn
	}
	return b, nil
}

// Close ends the connections.
func (b *Backends) Close() {
	for _, conn := range b.conns {
		_ = conn.Close() // only ever "already closing"
	}
}

// Register makes the server answer for every service of the routes, and for the
// state of all.
func (b *Backends) Register(s *grpc.Server) error {
	for name, services := range routes {
		conn, ok := b.conns[name]
		if !ok {
			return fmt.Errorf("no address of service %s", name)
		}
		backend := &proxy.SingleBackend{GetConn: func(ctx context.Context) (context.Context, *grpc.ClientConn, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return metadata.NewOutgoingContext(ctx, md.Copy()), conn, nil
		}}
		director := func(context.Context, string) (proxy.Mode, []proxy.Backend, error) {
			return proxy.One2One, []proxy.Backend{backend}, nil
		}
		for _, service := range services {
			proxy.RegisterService(s, director, string(service.FullName()), proxy.WithMethodNames(methods(service)...))
		}
	}
	platformv1.RegisterStatusServiceServer(s, status{backends: b})
	return nil
}

func methods(s protoreflect.ServiceDescriptor) []string {
	var out []string
	for i := range s.Methods().Len() {
		out = append(out, string(s.Methods().Get(i).Name()))
	}
	return out
}

// Watch returns the part that holds the gateway back from being ready until it
// has reached every service that clients call. One that goes away later shows in
// the status; it does not take the door from the others.
func (b *Backends) Watch(health *process.Health) func(ctx context.Context) error {
	reports := map[string]func(error){}
	for name := range routes {
		if operators[name] {
			continue
		}
		reports[name] = health.Check(name)
	}
	return func(ctx context.Context) error {
		var wg sync.WaitGroup
		for name, report := range reports {
			wg.Go(func() {
				report(errors.New("not reached yet"))
				if reached(ctx, b.conns[name]) {
					report(nil)
				}
			})
		}
		wg.Wait()
		<-ctx.Done()
		return nil
	}
}

// reached blocks until the connection is there, and tells false when ctx ends first.
func reached(ctx context.Context, conn *grpc.ClientConn) bool {
	for {
		conn.Connect()
		state := conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
}
