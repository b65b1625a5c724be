package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/telemetry"
)

// Options say how a server is made.
type Options struct {
	// Listen is "host:port" (port 0 = any free one) or "unix:///path".
	Listen string
	// Listener is used instead of Listen where it is set, such as an in-process one.
	Listener net.Listener
	// Log gets a line for each call: debug, or error for Internal ones. Default: none.
	Log *slog.Logger
	// Tel traces and measures the calls. Default: not at all.
	Tel *telemetry.Telemetry
	// MaxRecvBytes is the largest request message. Default 4 MiB.
	MaxRecvBytes int
	// Drain is how long calls in flight may take to end once the server stops, before
	// their connections are closed; where a peer is just connecting, as long as that may
	// take (5s) if that is longer. The contexts of streams end at once. Default 2s.
	Drain time.Duration
	// Translate makes errors of the technologies behind the server faults, before they
	// cross the wire. Default: none.
	Translate func(error) error
	// ServerOptions are added to the server's own, such as a handler of unknown services.
	ServerOptions []grpc.ServerOption
}

// Server is a gRPC server with the call, the faults, health (protocol of
// grpc.health.v1, not serving until SetServing) and reflection. Made by [NewServer].
type Server struct {
	grpc     *grpc.Server
	health   *health.Server
	listener net.Listener
	drain    time.Duration
	log      *slog.Logger
	stop     context.CancelFunc
}

// handshakeTimeout bounds the handshake of HTTP/2, as it does at clients that [Dial]
// makes. A stop waits for those that are under way, and a peer that is cut off ends
// none.
const handshakeTimeout = 5 * time.Second

// NewServer makes a server and listens, so that its address is known and taken; it
// serves once Run is called. It fails where the address is malformed or in use. A
// unix socket that a dead process left behind is replaced; the new one is for the
// user of the process only.
func NewServer(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxRecvBytes == 0 {
		o.MaxRecvBytes = 4 << 20
	}
	if o.Drain == 0 {
		o.Drain = 2 * time.Second
	}
	listener := o.Listener
	if listener == nil {
		var err error
		if listener, err = listen(o.Listen); err != nil {
			return nil, fmt.Errorf("listening on %s: %w", o.Listen, err)
		}
	}
	stopping, stop := context.WithCancel(context.Background())
	if o.Translate == nil {
		o.Translate = func(err error) error { return err }
	}
	e := &edge{log: o.Log, translate: o.Translate, stopping: stopping}
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(e.unary),
		grpc.ChainStreamInterceptor(e.stream),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(o.MaxRecvBytes),
		// Clients may ping every 10 s, with a margin for a busy machine's timers.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(handshakeTimeout),
		// A peer that vanished without a word is noticed, so that its stream ends.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}
	if o.Tel != nil {
		opts = append(opts, grpc.StatsHandler(otelgrpc.NewServerHandler(otelOptions(o.Tel)...)))
	}
	s := &Server{
		grpc: grpc.NewServer(append(opts, o.ServerOptions...)...), health: health.NewServer(),
		listener: listener, drain: o.Drain, log: o.Log, stop: stop,
	}
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.SetServing(false)
	return s, nil
}

func otelOptions(tel *telemetry.Telemetry) []otelgrpc.Option {
	return []otelgrpc.Option{
		otelgrpc.WithTracerProvider(tel.Tracers), otelgrpc.WithMeterProvider(tel.Meters),
		otelgrpc.WithPropagators(telemetry.Propagator()),
	}
}

// GRPC is the server underneath, to register services before Run.
func (s *Server) GRPC() *grpc.Server { return s.grpc }

// Addr is where the server listens, in the form that [Dial] takes.
func (s *Server) Addr() string {
	if a := s.listener.Addr(); a.Network() == "unix" {
		return "unix://" + a.String()
	}
	return s.listener.Addr().String()
}

// SetServing says over the health protocol whether the process wants calls. It does
// not refuse any.
func (s *Server) SetServing(serving bool) {
	st := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		st = healthpb.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus("", st)
}

// Run serves until ctx ends: then it takes no more calls, ends the contexts of open
// streams, waits for what is in flight, and closes what is left after Drain. It
// returns nil after a stop, an error where serving failed. Call it once.
func (s *Server) Run(ctx context.Context) error {
	defer s.stop()
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(s.listener) }()
	s.log.InfoContext(ctx, "serving gRPC", "address", s.Addr())
	select {
	case err := <-served:
		return fmt.Errorf("serving gRPC on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	s.health.Shutdown()
	s.stop()
	drained := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(drained)
	}()
	timer := time.NewTimer(s.drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		s.grpc.Stop()
		<-drained
	}
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving gRPC on %s: %w", s.Addr(), err)
	}
	return nil
}

// Close frees the address of a server that was never run.
func (s *Server) Close() {
	s.stop()
	s.grpc.Stop()
	s.listener.Close()
}

// maxSocketPath is what the kernel takes, less the terminating zero.
const maxSocketPath = 107

func listen(addr string) (net.Listener, error) {
	path, unix := strings.CutPrefix(addr, "unix://")
	if !unix {
		return net.Listen("tcp", addr)
	}
	if !strings.HasPrefix(path, "/") {
		return nil, fault.New(fault.Invalid, "the path of a unix socket must be absolute: unix:///path")
	}
	if len(path) > maxSocketPath {
		return nil, fault.New(fault.Invalid, "the path of a unix socket may have %d bytes, this one has %d", maxSocketPath, len(path))
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on; anything else stays.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return nil // nothing there, or not a socket: listening says what is wrong
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return errors.Join(fault.New(fault.AlreadyExists, "another process listens there"), conn.Close())
	}
	return os.Remove(path)
}
