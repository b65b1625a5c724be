package cli

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// remote is the server, service by service.
type remote struct {
	conn      *grpc.ClientConn
	jobs      schedulerv1.JobServiceClient
	workers   registryv1.WorkerServiceClient
	logs      registryv1.LogServiceClient
	providers provisionerv1.ProviderServiceClient
	audit     auditv1.AuditServiceClient
	dead      auditv1.DeadLetterServiceClient
	status    platformv1.StatusServiceClient
	// completeness compares log and stream.
	completeness relayv1.CompletenessServiceClient
}

// connect returns the server and a context whose calls carry who asks. It does not
// talk to it yet.
func (a *app) connect(ctx context.Context) (context.Context, *remote, error) {
	ctx = rpc.WithCall(ctx, a.call())
	if a.remote != nil {
		return ctx, a.remote, nil
	}
	if err := checkAddress(a.server); err != nil {
		return nil, nil, err
	}
	conn, err := rpc.Dial(
		a.server,
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithChainUnaryInterceptor(bounded),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
	if err != nil {
		return nil, nil, err
	}
	a.remote = &remote{
		conn: conn, jobs: schedulerv1.NewJobServiceClient(conn),
		workers: registryv1.NewWorkerServiceClient(conn), logs: registryv1.NewLogServiceClient(conn),
		providers: provisionerv1.NewProviderServiceClient(conn),
		audit:     auditv1.NewAuditServiceClient(conn), dead: auditv1.NewDeadLetterServiceClient(conn),
		status: platformv1.NewStatusServiceClient(conn), completeness: relayv1.NewCompletenessServiceClient(conn),
	}
	return ctx, a.remote, nil
}

func (a *app) close() {
	if a.remote != nil {
		a.remote.conn.Close()
	}
}

// bounded gives every call with one answer a deadline.
func bounded(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	return invoke(ctx, method, req, reply, cc, opts...)
}

// checkAddress refuses what can only be a mistake.
func checkAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		if !filepath.IsAbs(path) {
			return Usage("--server %q: give the socket's absolute path, as in unix:///run/hodei.sock", addr)
		}
		return nil
	}
	if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
		return Usage("--server %q: host:port or unix:///path", addr)
	}
	return nil
}

// patience is how long somebody who follows something bears with a server that is
// away: each success renews it. Not safe for concurrent use.
type patience struct {
	a       *app
	r       *remote
	reached bool
	failing time.Time
	delay   time.Duration
	// room is how long to bear with a server that takes no more jobs; told: the user knows.
	room time.Duration
	told bool
}

func (a *app) patience(r *remote) *patience { return &patience{a: a, r: r} }

// renew is called whenever the server has answered.
func (p *patience) renew() { p.reached, p.failing, p.delay, p.told = true, time.Time{}, 0, false }

// bear waits a little before the next try and returns nil, or returns err where it
// does not go away by waiting, or not soon enough. The end of a stream that should
// go on is such a failure too.
func (p *patience) bear(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) {
		err = fault.New(fault.Unavailable, "the server ended the stream too early")
	}
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Exhausted && e.RetryAfter > 0 {
		return p.bearFull(ctx, e)
	}
	if !errors.Is(err, fault.Unavailable) {
		return err
	}
	limit := p.a.firstContact
	if p.reached {
		limit = p.a.reconnect
	}
	if p.failing.IsZero() {
		p.failing = time.Now()
	}
	if time.Since(p.failing) >= limit {
		return err
	}
	if !p.pause(ctx) {
		return ctx.Err()
	}
	p.r.conn.ResetConnectBackoff()
	return nil
}

// bearFull waits for room, as long as the server says and a little more, so that those
// who were refused together do not come back together.
func (p *patience) bearFull(ctx context.Context, full *fault.Error) error {
	if p.failing.IsZero() {
		p.failing = time.Now()
	}
	if time.Since(p.failing)+full.RetryAfter > p.room {
		return full
	}
	if !p.told {
		p.told = true
		p.a.note("%s; waiting for room, up to %s", render.Plain(full.Message), p.room)
	}
	if !goesOn(ctx, full.RetryAfter+rand.N(full.RetryAfter/2+1)) {
		return ctx.Err()
	}
	return nil
}

// pause waits, longer each time, and tells whether ctx still goes on.
func (p *patience) pause(ctx context.Context) bool {
	p.delay = min(max(2*p.delay, 50*time.Millisecond), time.Second)
	return goesOn(ctx, p.delay)
}

// goesOn waits and tells whether ctx still goes on.
func goesOn(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
