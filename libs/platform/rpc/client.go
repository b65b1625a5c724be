package rpc

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/telemetry"
)

// Dial returns a connection to "host:port" or "unix:///path". It does not connect
// before the first call. The call of the context goes along with every call, and
// errors come back as faults ([FromStatus]). A lost connection is tried again at
// least every 2 s, and the name resolved anew each time, so that a service that
// restarts elsewhere is found at once; a dead peer is noticed after 15 s. opts come
// after the defaults and so override them; add [WithTelemetry] for traces.
func Dial(addr string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	target := addr
	if !strings.HasPrefix(addr, "unix:") && !strings.Contains(addr, ":///") {
		// gRPC's dns scheme asks again only after 30 s; the dialer asks each time.
		target = "passthrough:///" + addr
	}
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithChainUnaryInterceptor(unaryClient),
		grpc.WithChainStreamInterceptor(streamClient),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16 << 20)),
	}, opts...)...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the address %q is not host:port or unix:///path", addr)
	}
	return conn, nil
}

// WithTelemetry traces and measures the calls of a connection.
func WithTelemetry(tel *telemetry.Telemetry) grpc.DialOption {
	return grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelOptions(tel)...))
}

func unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromStatus(invoke(outgoing(ctx), method, req, reply, cc, opts...))
}

func streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(outgoing(ctx), desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return &clientStream{s}, nil
}

// clientStream translates what a stream ends with.
type clientStream struct{ grpc.ClientStream }

func (s *clientStream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	return md, FromStatus(err)
}

func (s *clientStream) SendMsg(m any) error { return FromStatus(s.ClientStream.SendMsg(m)) }
func (s *clientStream) RecvMsg(m any) error { return FromStatus(s.ClientStream.RecvMsg(m)) }
func (s *clientStream) CloseSend() error    { return FromStatus(s.ClientStream.CloseSend()) }
