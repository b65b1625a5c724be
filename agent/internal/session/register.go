package session

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"hodei.dev/agent/internal/guard"
	"hodei.dev/agent/internal/logs"
	"hodei.dev/agent/internal/run"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/proctree"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// keySession is the metadata key of the session's secret.
const keySession = "hodei-session"

// The terms of a session where the registry names none.
const (
	defaultHeartbeat = 5 * time.Second
	defaultLease     = 20 * time.Second
	defaultGrace     = 10 * time.Second
)

const (
	backoffMin      = 100 * time.Millisecond
	backoffMax      = 2 * time.Second
	registerTimeout = 10 * time.Second
)

// Config is what a session needs.
type Config struct {
	// Client is the registry's door for agents.
	Client registryv1.WorkerAgentServiceClient
	// WorkerID is the worker that the agent is of, Version the agent's own.
	WorkerID, Version string
	// Token is good for one registration.
	Token string
	// Runner runs the attempts.
	Runner *run.Runner
	// JobsDir is the directory below which each attempt gets its own; searchable by RunAs.
	JobsDir string
	// RunAs is who jobs run as; nil: the agent's own user.
	RunAs *run.Credential
	// Limits are those of a job that asks for none.
	Limits proctree.Limits
	// Guard ends what runs when this process cannot; nil: there is none.
	Guard *guard.Guard
	// Logs says how output is shipped.
	Logs logs.Config
	// Log has the worker's id already.
	Log *slog.Logger
}

// terms are what the registry asks of an agent.
type terms struct{ heartbeat, lease, grace time.Duration }

// silence is how long a stream may say nothing: less than the lease, so that
// another stream can still save it.
func (t terms) silence() time.Duration { return max(t.lease/2, 2*t.heartbeat) }

// Register trades the token for a session. It tries for as long as the registry
// cannot answer, always with the same nonce, so that a lost answer costs nothing;
// a refusal is an error of the registry's kind. The end of ctx ends it with ctx's
// error.
func Register(ctx context.Context, cfg Config) (*Session, error) {
	req := &registryv1.RegisterRequest{
		WorkerId: cfg.WorkerID, Token: cfg.Token, Nonce: rand.Text(), AgentVersion: cfg.Version, Pid: int32(os.Getpid()),
	}
	req.Hostname, _ = os.Hostname() // it is information only
	for pause := backoffMin; ; pause = min(2*pause, backoffMax) {
		resp, err := registerOnce(ctx, cfg.Client, req)
		if err == nil {
			return newSession(cfg, resp.GetSession(), agreed(resp, cfg.Log)), nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !passing(err) {
			return nil, fmt.Errorf("registering worker %s: %w", cfg.WorkerID, err)
		}
		cfg.Log.Warn("the registry does not answer yet", "error", err)
		select {
		case <-time.After(jitter(pause)):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func registerOnce(ctx context.Context, client registryv1.WorkerAgentServiceClient, req *registryv1.RegisterRequest) (*registryv1.RegisterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	resp, err := client.Register(ctx, req, grpc.WaitForReady(true))
	if err == nil && resp.GetSession() == "" {
		err = fault.New(fault.Unavailable, "the registry answered without a session")
	}
	return resp, err
}

// passing says whether the same call may succeed later.
func passing(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Exhausted, fault.Conflict, fault.Internal:
		return true
	default:
		return false
	}
}

func agreed(resp *registryv1.RegisterResponse, log *slog.Logger) terms {
	read := func(name, text string, or time.Duration) time.Duration {
		if text == "" {
			return or
		}
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			log.Warn("the registry sent terms that are no duration", "term", name, "value", text, "used", or)
			return or
		}
		return d
	}
	return terms{
		heartbeat: read("heartbeat_interval", resp.GetHeartbeatInterval(), defaultHeartbeat),
		lease:     read("lease", resp.GetLease(), defaultLease),
		grace:     read("kill_grace", resp.GetKillGrace(), defaultGrace),
	}
}

// authorize adds the session to the calls of a context.
func (s *Session) authorize(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, keySession, s.secret)
}

func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d/2+1) }
