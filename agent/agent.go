// Package agent is the worker's agent: the process that registers a worker with
// the platform, runs the attempts that are handed to it, ships their output and
// reports how they ended.
//
//	bootstrap ──> Run ──> session ──────── Connect ───────> registry
//	                         │  Run, Start, Cancel, Drop        ▲
//	                         ▼                                  │
//	                        run ──> process tree of the job     │
//	                         │ output                           │
//	                         └────> logs ─────── SendLogs ──────┘
//
// It keeps nothing across its own end: an agent that was killed is a lost worker,
// and whoever made the worker ends what is left of it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"hodei.dev/agent/internal/guard"
	"hodei.dev/agent/internal/run"
	"hodei.dev/agent/internal/session"
	"hodei.dev/agent/internal/uptime"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/proctree"
	"hodei.dev/libs/platform/rpc"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// cleanUpPatience bounds the end of what an attempt left behind.
const cleanUpPatience = 2 * time.Second

// Config is what an agent needs.
type Config struct {
	// Server is where the registry takes agents: "host:port" or "unix:///path". Required.
	Server string
	// WorkerID is the worker that this is the agent of. Required.
	WorkerID string
	// Token is the registration token, good for one registration. Required, secret.
	Token string
	// Version is the agent's own; may be empty.
	Version string
	// WorkDir is the agent's directory, of no other program and no other agent; made
	// when absent. Required. RunAs must be able to search it and all above it.
	WorkDir string
	// RunAs is who jobs run as. Nil: the agent's own user. Needs root.
	RunAs *User
	// Limits are those of a job that asks for none; 0 = no limit.
	Limits Limits
	// Guard has a second process end what the agent runs when the agent itself cannot:
	// for an agent whose provider could not kill it. It is the path of a program that
	// calls [Guard] when its arguments begin with "guard"; empty: none.
	Guard string
	// Log is the logger. Required.
	Log *slog.Logger
}

// User is who jobs run as.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups; none by default.
	Groups []uint32
	// Name is for USER and LOGNAME; default the number.
	Name string
	// Home is for HOME; default the attempt's work directory.
	Home string
}

// Limits bound a job.
type Limits struct {
	// MemoryBytes is memory, CPUMillis thousandths of a core.
	MemoryBytes, CPUMillis int64
}

func (c Config) validate() error {
	var wrong fault.Fields
	for _, f := range []struct{ name, value string }{
		{"server", c.Server}, {"worker", c.WorkerID}, {"token", c.Token}, {"work-dir", c.WorkDir},
	} {
		if f.value == "" {
			wrong.Add(f.name, "is required")
		}
	}
	if c.Limits.MemoryBytes < 0 || c.Limits.CPUMillis < 0 {
		wrong.Add("limits", "must not be negative")
	}
	return asConfig(wrong.Err("the agent's configuration"))
}

// ConfigInvalid is the code of an error that only another configuration can mend.
const ConfigInvalid = "CONFIG_INVALID"

func asConfig(err error) error {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		e.Code = ConfigInvalid
	}
	return err
}

func misconfigured(format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...).WithCode(ConfigInvalid, "")
}

// Run is the life of an agent. It returns nil when the registry has ended the
// worker's life, or when ctx ended and what ran was cancelled and reported. An
// error is a configuration that cannot work (code ConfigInvalid), a registration
// that was refused, or a session that the registry does not know any more.
//
// It makes the process the parent of its jobs' orphans and takes the exit status
// of all its children: a process can be one agent, and little else.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	log := cfg.Log.With("worker_id", cfg.WorkerID)
	dir, err := openWorkDir(cfg.WorkDir, cfg.RunAs)
	if err != nil {
		return err
	}
	defer dir.close(log)
	trees, err := proctree.NewRoot(proctree.Config{StateDir: dir.trees, Subreaper: true})
	if err != nil {
		return fmt.Errorf("preparing for processes: %w", err)
	}
	defer trees.Close()
	sweep(trees, log) // of an agent that was killed
	defer sweep(trees, log)
	if err := dir.clear(); err != nil {
		return err
	}
	conn, err := rpc.Dial(cfg.Server)
	if err != nil {
		return asConfig(err)
	}
	defer conn.Close()

	watched, err := watch(cfg, dir.trees)
	if err != nil {
		return err
	}
	if watched != nil {
		defer watched.Close()
	}
	runner := run.New(trees, log)
	s, err := session.Register(ctx, session.Config{
		Client: registryv1.NewWorkerAgentServiceClient(conn), WorkerID: cfg.WorkerID, Version: cfg.Version, Token: cfg.Token,
		Runner: runner, Guard: watched, JobsDir: dir.jobs, RunAs: (*run.Credential)(cfg.RunAs),
		Limits: proctree.Limits{MemoryBytes: cfg.Limits.MemoryBytes, CPUMillis: cfg.Limits.CPUMillis}, Log: log,
	})
	if err != nil {
		if ctx.Err() != nil {
			log.Info("stopped before the worker was registered")
			return nil
		}
		return err
	}
	caps := runner.Capabilities()
	log.Info("registered", "server", cfg.Server, "processes", caps.Mode, "memory_limits", caps.Memory, "cpu_limits", caps.CPU)
	return s.Run(ctx)
}

// watch starts the guard, where there is to be one: before there is a job, and after
// the trees were prepared, so that it belongs to none of them.
func watch(cfg Config, trees string) (*guard.Guard, error) {
	if cfg.Guard == "" {
		return nil, nil
	}
	return guard.Start(cfg.Guard, trees, os.Stderr)
}

// Guard is the life of a guard: see [Config]. trees is the argument that it got. It
// returns when its agent has ended.
func Guard(trees string, log *slog.Logger) error {
	return guard.Watch(guard.Pipe(), uptime.Now, func(reason string) {
		root, err := proctree.NewRoot(proctree.Config{StateDir: trees})
		if err != nil {
			log.Error("the guard cannot end what its agent ran", "error", err, "alert", true)
			return
		}
		defer root.Close()
		kill(root, log.With("reason", reason))
	})
}

// kill ends every process of the trees; their records are their agent's.
func kill(trees *proctree.Root, log *slog.Logger) {
	names, err := trees.List()
	if err != nil {
		log.Error("looking for what the agent ran", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpPatience)
	defer cancel()
	for _, name := range names {
		t, err := trees.Open(name)
		if err == nil {
			err = t.Kill(ctx)
		}
		log.Warn("the guard ended an attempt", "tree", name, "error", err)
	}
}

// sweep ends what is left of attempts that nobody follows any more.
func sweep(trees *proctree.Root, log *slog.Logger) {
	names, err := trees.List()
	if err != nil {
		log.Error("looking for processes that were left behind", "error", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpPatience)
	defer cancel()
	for _, name := range names {
		t, err := trees.Open(name)
		if err == nil {
			err = t.Kill(ctx)
		}
		if err == nil {
			err = t.Remove()
		}
		log.Warn("ended what an attempt had left behind", "tree", name, "error", err)
	}
}
