// Package process is the provider whose workers are processes on the
// provisioner's own machine: an agent and what it starts, held together as one
// process tree.
//
//	<StateDir>/            0711
//	  instance             which provisioner this directory belongs to
//	  trees/               0700 the records of the process trees
//	  workers/             0711 searchable, not listable
//	    <worker id>/       0711
//	      worker.json      0600 who it is and the user of its jobs
//	      agent.log        0600 what the agent itself says
//	      work/            0711 the agent's, with the private directories of its jobs, 0700
//
// Agents do not depend on the provisioner: they are found again by the directory
// and the name of their tree. A worker's end is the end of every process of its
// tree, also of those that left their session, and of the directory.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/platform/proctree"
	"hodei.dev/services/provisioner/internal/app"
)

// AgentName is the agent's program.
const AgentName = "hodei-agent"

// killPatience bounds one try to end a tree: only a process that is stuck in the
// kernel takes longer.
const killPatience = 10 * time.Second

// Config says how workers are made.
type Config struct {
	// StateDir is where workers live; made when absent. Required.
	StateDir string
	// AgentBinary is the agent's program; default: the one beside the own executable,
	// else the one in PATH.
	AgentBinary string
	// RunAs is the user of jobs where a registration names none: a name, a number, or
	// number:number for user and group. Default: with root's rights an unprivileged user of
	// its own for each worker, else the own user.
	RunAs string
	// Concurrency bounds how many workers are made, and how many are ended, at once.
	// Default 16.
	Concurrency int
	// Mode forces how trees are held together. Default: the best that works.
	Mode proctree.Mode
	// Log gets what an operator should know. Default slog.Default().
	Log *slog.Logger
}

// Provider implements app.Provider and app.Local. Safe for concurrent use.
type Provider struct {
	cfg      Config
	trees    *proctree.Root
	workers  string // the directory
	instance string
	closed   chan struct{}
	// making and ending bound the calls; apart, because making waits for registry.
	making, ending chan struct{}
	once           sync.Once

	adopting sync.Mutex // guards adopted
	// adopted: what others left in the state directory is taken over. It is not while
	// nobody watches, for then another provisioner may be at work here.
	adopted bool

	mu      sync.Mutex // guards what follows
	watched map[string]*watched
	gone    func(app.Gone) // nil while nobody watches
	users   map[string]uint32
}

// watched is a worker whose agent is waited for.
type watched struct {
	cancel context.CancelFunc
	// ended is why the agent has ended; "" while it runs.
	ended string
}

// New opens the state directory; the workers in it are taken over by the first Watch
// or Create. An error means that the directory or the configuration cannot be used.
func New(cfg Config) (*Provider, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	abs, err := filepath.Abs(cfg.StateDir)
	if cfg.StateDir == "" || err != nil {
		return nil, fault.New(fault.Invalid, "state_dir %q: the process provider needs a directory", cfg.StateDir)
	}
	cfg.StateDir = abs
	p := &Provider{
		cfg: cfg, workers: filepath.Join(abs, "workers"), closed: make(chan struct{}),
		making: make(chan struct{}, cmp.Or(cfg.Concurrency, 16)), ending: make(chan struct{}, cmp.Or(cfg.Concurrency, 16)),
		watched: map[string]*watched{}, users: map[string]uint32{},
	}
	for _, dir := range []string{abs, p.workers} {
		if err := makeSearchable(dir); err != nil {
			return nil, err
		}
	}
	if p.instance, err = instance(filepath.Join(abs, "instance")); err != nil {
		return nil, err
	}
	if p.trees, err = proctree.NewRoot(proctree.Config{StateDir: filepath.Join(abs, "trees"), Mode: cfg.Mode}); err != nil {
		return nil, fmt.Errorf("prepare process trees: %w", err)
	}
	return p, nil
}

// Close stops watching. Workers go on.
func (p *Provider) Close() {
	p.once.Do(func() {
		close(p.closed)
		p.mu.Lock()
		for _, w := range p.watched {
			w.cancel()
		}
		p.mu.Unlock()
		p.trees.Close()
	})
}

// makeSearchable makes a directory whose names cannot be listed by others.
func makeSearchable(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make the directory of workers: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return fmt.Errorf("protect the directory of workers: %w", err)
	}
	return nil
}

// instance reads the name of the state directory, which is made once: a resource
// that another one made is not here.
func instance(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err == nil && len(raw) > 0 {
		return strings.TrimSpace(string(raw)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read which provisioner the state directory belongs to: %w", err)
	}
	id := uuid.NewString()
	if err := writeFile(file, []byte(id+"\n")); err != nil {
		return "", err
	}
	return id, nil
}

// writeFile writes a file that a reader sees whole or not at all.
func writeFile(file string, data []byte) error {
	tmp := file + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return nil
}

// Here tells whether a resource was made with this state directory.
func (p *Provider) Here(details map[string]string) bool {
	at := details["instance"]
	return at == "" || at == p.instance
}

// Capabilities is what the process trees of this machine can do.
func (p *Provider) Capabilities() app.Capabilities {
	c := p.trees.Capabilities()
	return app.Capabilities{
		Capabilities: provider.Capabilities{EnforcesCPU: c.CPU, EnforcesMemory: c.Memory, Isolation: string(c.Mode)},
		Inventory:    true,
	}
}

// Health tells whether workers can be made: the agent is there and the state
// directory can be written.
func (p *Provider) Health(context.Context) error {
	if _, err := p.agent(); err != nil {
		return err
	}
	f, err := os.CreateTemp(p.workers, ".health-")
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the state directory cannot be written")
	}
	_, err = f.WriteString("ok")
	if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the state directory cannot be written")
	}
	return nil
}

// Accepts checks the user and refuses options: there are none.
func (p *Provider) Accepts(s provider.Spec) error {
	var wrong fault.Fields
	if s.RunAs != "" {
		if _, err := lookupUser(s.RunAs, os.Geteuid()); err != nil {
			wrong.Add("run_as", "%s", err)
		}
	}
	if len(s.Config) > 0 {
		wrong.Add("config", "a process provider has no options")
	}
	return wrong.Err("the provider")
}

// agent is the path of the agent's program; an error says where it was looked for.
func (p *Provider) agent() (string, error) {
	if p.cfg.AgentBinary != "" {
		path, err := exec.LookPath(p.cfg.AgentBinary)
		if err != nil {
			return "", fault.Wrap(fault.Unavailable, err, "the agent cannot be executed")
		}
		return filepath.Abs(path)
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), AgentName)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(AgentName)
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err, "the agent is neither beside this program nor in PATH").
			WithCode("AGENT_NOT_FOUND", "install "+AgentName+" beside the provisioner, or set agent_binary")
	}
	return path, nil
}

// enter waits for a free slot; the caller takes it back out.
func enter(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
