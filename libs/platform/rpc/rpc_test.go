package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a service with one unary call and one stream.
type handler struct {
	answer func(ctx context.Context) error
	stream func(ss grpc.ServerStream) error
}

var desc = grpc.ServiceDesc{
	ServiceName: "hodei.test.v1.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := &wrapperspb.StringValue{}
		if err := decode(in); err != nil {
			return nil, err
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/hodei.test.v1.Echo/Echo"}, func(ctx context.Context, _ any) (any, error) {
			if err := srv.(*handler).answer(ctx); err != nil {
				return nil, err
			}
			return wrapperspb.String(rpc.CallFrom(ctx).CorrelationID), nil
		})
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Watch", ServerStreams: true, ClientStreams: true, Handler: func(srv any, ss grpc.ServerStream) error {
		return srv.(*handler).stream(ss)
	}}},
}

// start runs a server for the time of the test and returns a connection to it.
func start(t *testing.T, o rpc.Options, h *handler, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	_, conn, _ := startServer(t, o, h, opts...)
	return conn
}

func startServer(t *testing.T, o rpc.Options, h *handler, opts ...grpc.DialOption) (*rpc.Server, *grpc.ClientConn, context.CancelFunc) {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s, err := rpc.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.GRPC().RegisterService(&desc, h)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := rpc.Dial(s.Addr(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return s, conn, cancel
}

func echo(ctx context.Context, conn *grpc.ClientConn, opts ...grpc.CallOption) error {
	return conn.Invoke(ctx, "/hodei.test.v1.Echo/Echo", wrapperspb.String("x"), &wrapperspb.StringValue{}, opts...)
}

func watch(ctx context.Context, t *testing.T, conn *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/hodei.test.v1.Echo/Watch")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ok(context.Context) error { return nil }

func TestCallIsMadeAtTheEdge(t *testing.T) {
	var seen rpc.Call
	conn := start(t, rpc.Options{}, &handler{answer: func(ctx context.Context) error { seen = rpc.CallFrom(ctx); return nil }})
	var header metadata.MD
	if err := echo(t.Context(), conn, grpc.Header(&header)); err != nil {
		t.Fatal(err)
	}
	if seen.Actor != rpc.Anonymous || len(seen.CorrelationID) != 36 || seen.CorrelationID[14] != '7' {
		t.Errorf("made %+v", seen)
	}
	if got := header.Get(rpc.KeyCorrelationID); len(got) != 1 || got[0] != seen.CorrelationID {
		t.Errorf("the header says %v", got)
	}
}

func TestCallTravelsTwoHops(t *testing.T) {
	var seen rpc.Call
	spans := tracetest.NewSpanRecorder()
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "test", SpanProcessors: []trace.SpanProcessor{spans}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	second := start(t, rpc.Options{Tel: tel}, &handler{answer: func(ctx context.Context) error {
		seen = rpc.CallFrom(ctx)
		return fault.New(fault.Conflict, "taken").WithCode("TAKEN", "read again")
	}}, rpc.WithTelemetry(tel))
	first := start(t, rpc.Options{Tel: tel}, &handler{answer: func(ctx context.Context) error {
		err := echo(ctx, second)
		return err
	}}, rpc.WithTelemetry(tel))

	sent := rpc.Call{CorrelationID: "c-1", Actor: "service/scheduler", CausationID: "e-1"}
	var header metadata.MD
	err = echo(rpc.WithCall(t.Context(), sent), first, grpc.Header(&header))
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Conflict || e.Code != "TAKEN" || e.Message != "taken" {
		t.Errorf("the fault became %v", err)
	}
	if seen != sent {
		t.Errorf("the second hop saw %+v", seen)
	}
	if got := header.Get(rpc.KeyCorrelationID); len(got) != 1 || got[0] != "c-1" {
		t.Errorf("the header of a failed call says %v", got)
	}
	for _, s := range spans.Ended() {
		if s.SpanContext().TraceID() != spans.Ended()[0].SpanContext().TraceID() {
			t.Error("the hops are in different traces")
		}
	}
	if len(spans.Started()) != 4 {
		t.Errorf("%d spans, want 4", len(spans.Started()))
	}
}

func TestStreamsCarryTheCallAndFaults(t *testing.T) {
	conn := start(t, rpc.Options{}, &handler{stream: func(ss grpc.ServerStream) error {
		in := &wrapperspb.StringValue{}
		if err := ss.RecvMsg(in); err != nil {
			return err
		}
		c := rpc.CallFrom(ss.Context())
		if err := ss.SendMsg(wrapperspb.String(c.Actor + " " + c.CorrelationID)); err != nil {
			return err
		}
		return fault.New(fault.Exhausted, "enough")
	}})
	s := watch(rpc.WithCall(t.Context(), rpc.Call{CorrelationID: "c-2", Actor: "worker/w-1"}), t, conn)
	if err := s.SendMsg(wrapperspb.String("x")); err != nil {
		t.Fatal(err)
	}
	out := &wrapperspb.StringValue{}
	if err := s.RecvMsg(out); err != nil || out.Value != "worker/w-1 c-2" {
		t.Fatalf("got %q, %v", out.Value, err)
	}
	if err := s.RecvMsg(out); !errors.Is(err, fault.Exhausted) {
		t.Fatalf("got %v", err)
	}
	if md, err := s.Header(); err != nil || md.Get(rpc.KeyCorrelationID)[0] != "c-2" {
		t.Errorf("header %v, %v", md, err)
	}
}

func TestBadMetadataIsRefusedByName(t *testing.T) {
	reached := false
	conn := start(t, rpc.Options{}, &handler{answer: func(context.Context) error { reached = true; return nil }})
	long := strings.Repeat("x", 129)
	for name, tc := range map[string]struct{ key, value string }{
		"long id":         {rpc.KeyCorrelationID, long},
		"id with a space": {rpc.KeyCorrelationID, "a b"},
		"actor's form":    {rpc.KeyActor, "ana"},
		"actor's kind":    {rpc.KeyActor, "root/ana"},
		"nameless actor":  {rpc.KeyActor, "user/"},
		"long actor":      {rpc.KeyActor, "user/" + long},
		"causation":       {rpc.KeyCausationID, long},
	} {
		t.Run(name, func(t *testing.T) {
			err := echo(metadata.AppendToOutgoingContext(t.Context(), tc.key, tc.value), conn)
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.Invalid || len(e.Fields) != 1 || e.Fields[0].Name != tc.key {
				t.Errorf("got %v", err)
			}
		})
	}
	err := echo(metadata.AppendToOutgoingContext(t.Context(), rpc.KeyActor, "user/a", rpc.KeyActor, "user/b"), conn)
	if !errors.Is(err, fault.Invalid) {
		t.Errorf("two actors: %v", err)
	}
	if reached {
		t.Error("a refused call reached the handler")
	}
}

func TestPanicsAndInternalErrorsAreLogged(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(telemetry.NewLogHandler(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn})))
	h := &handler{}
	conn := start(t, rpc.Options{Log: log}, h)
	ctx := rpc.WithCall(t.Context(), rpc.Call{CorrelationID: "c-3"})
	for want, answer := range map[string]func(context.Context) error{
		"panicked: oh":   func(context.Context) error { panic("oh") },
		"unexpected EOF": func(context.Context) error { return io.ErrUnexpectedEOF },
	} {
		out.Reset()
		h.answer = answer
		err := echo(ctx, conn)
		if !errors.Is(err, fault.Internal) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v", err)
		}
		if log := out.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "correlation_id=c-3") || !strings.Contains(log, "method=/hodei.test.v1.Echo/Echo") {
			t.Errorf("the log says %q", log)
		}
	}
	out.Reset()
	h.answer = func(context.Context) error { return fault.NotFound }
	if err := echo(ctx, conn); !errors.Is(err, fault.NotFound) || out.Len() > 0 {
		t.Errorf("%v; an ordinary refusal is logged: %q", err, out.String())
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (rawCodec) Unmarshal(_ []byte, _ any) error { return nil }
func (rawCodec) Name() string                    { return "proto" }

func TestBadMessagesAreInvalid(t *testing.T) {
	conn := start(t, rpc.Options{MaxRecvBytes: 1 << 10}, &handler{answer: ok, stream: func(ss grpc.ServerStream) error {
		return ss.RecvMsg(&wrapperspb.StringValue{})
	}})
	err := conn.Invoke(t.Context(), "/hodei.test.v1.Echo/Echo", []byte("\xff\xff"), new(any), grpc.ForceCodec(rawCodec{}))
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Invalid || e.Code != "MALFORMED_REQUEST" {
		t.Errorf("a malformed request: %v", err)
	}
	s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/hodei.test.v1.Echo/Watch", grpc.ForceCodec(rawCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg([]byte("\xff\xff")); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(any)); !errors.Is(err, fault.Invalid) {
		t.Errorf("a malformed message of a stream: %v", err)
	}
	err = conn.Invoke(t.Context(), "/hodei.test.v1.Echo/Echo", wrapperspb.String(strings.Repeat("x", 2<<10)), &wrapperspb.StringValue{})
	if !errors.As(err, &e) || e.Kind != fault.Invalid || e.Code != "MESSAGE_TOO_LARGE" {
		t.Errorf("a large request: %v", err)
	}
	err = conn.Invoke(t.Context(), "/hodei.test.v1.Echo/Nothing", wrapperspb.String("x"), &wrapperspb.StringValue{})
	if !errors.As(err, &e) || e.Code != "UNIMPLEMENTED" {
		t.Errorf("an unknown method: %v", err)
	}
}

func TestStopEndsOpenStreams(t *testing.T) {
	in := make(chan struct{}, 2)
	polite := func(ss grpc.ServerStream) error {
		in <- struct{}{}
		<-ss.Context().Done()
		return ss.Context().Err()
	}
	stubborn := func(ss grpc.ServerStream) error {
		in <- struct{}{}
		return ss.RecvMsg(&wrapperspb.StringValue{})
	}
	for name, tc := range map[string]struct {
		stream func(grpc.ServerStream) error
		drain  time.Duration
	}{
		"one that looks at its context": {polite, time.Hour},
		"one that only receives":        {stubborn, 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			_, conn, stop := startServer(t, rpc.Options{Drain: tc.drain}, &handler{stream: tc.stream})
			s := watch(t.Context(), t, conn)
			<-in
			stop()
			if err := s.RecvMsg(&wrapperspb.StringValue{}); !errors.Is(err, fault.Unavailable) {
				t.Errorf("the client hears %v", err)
			}
		})
	}
}

// TestStopWhileAPeerConnects: one that is cut off before its first word keeps no server
// from stopping, and no other client from hearing of it.
func TestStopWhileAPeerConnects(t *testing.T) {
	s, err := rpc.NewServer(rpc.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	in := make(chan struct{})
	s.GRPC().RegisterService(&desc, &handler{stream: func(ss grpc.ServerStream) error {
		close(in)
		<-ss.Context().Done()
		return ss.Context().Err()
	}})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	conn, err := rpc.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	open := watch(t.Context(), t, conn)
	<-in
	mute, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if _, err := io.ReadFull(mute, make([]byte, 9)); err != nil { // its settings: it waits for ours
		t.Fatal(err)
	}
	stop()
	if err := open.RecvMsg(&wrapperspb.StringValue{}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("the client hears %v", err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		mute.Close()
		t.Errorf("the server does not stop before its peer is gone: %v", <-done)
	}
}

func TestHealthAndReflection(t *testing.T) {
	s, conn, _ := startServer(t, rpc.Options{}, &handler{answer: ok})
	ask := func() healthpb.HealthCheckResponse_ServingStatus {
		resp, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetStatus()
	}
	if got := ask(); got != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("before: %s", got)
	}
	s.SetServing(true)
	if got := ask(); got != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("after: %s", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := reflectpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Send(&reflectpb.ServerReflectionRequest{MessageRequest: &reflectpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	resp, err := r.Recv()
	if err != nil || !strings.Contains(resp.String(), "hodei.test.v1.Echo") {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	s, conn, _ := startServer(t, rpc.Options{Listen: "unix://" + path}, &handler{answer: ok})
	if err := echo(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	if s.Addr() != "unix://"+path {
		t.Errorf("address %s", s.Addr())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := rpc.NewServer(rpc.Options{Listen: "unix://" + path}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("a live socket is taken: %v", err)
	}
	for _, bad := range []string{"unix://relative", "unix:///" + strings.Repeat("x", 107), "nonsense"} {
		if _, err := rpc.NewServer(rpc.Options{Listen: bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func TestRestartedServerIsFound(t *testing.T) {
	first, err := rpc.NewServer(rpc.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	addr := first.Addr()
	first.Close()
	conn, err := rpc.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echo(t.Context(), conn); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("nobody listens: %v", err)
	}
	start(t, rpc.Options{Listen: addr}, &handler{answer: ok})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := echo(ctx, conn, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}

func TestDeadlineAndCancel(t *testing.T) {
	conn := start(t, rpc.Options{}, &handler{answer: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := echo(ctx, conn); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, fault.Unavailable) {
		t.Errorf("deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := echo(ctx, conn); !errors.Is(err, context.Canceled) {
		t.Errorf("cancel: %v", err)
	}
}
