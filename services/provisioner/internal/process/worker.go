package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/bootstrap"
	"hodei.dev/libs/platform/proctree"
	"hodei.dev/services/provisioner/internal/app"
)

// What the agent itself needs, on top of what a job has reserved: the limits of the
// worker are a fence around both, those of the job are the agent's to set.
const (
	agentMemory    = 64 << 20
	agentCPUMillis = 250
)

// record is what a worker's directory says of it.
type record struct {
	WorkerID string `json:"worker_id"`
	Provider string `json:"provider"`
	// User is the user that the worker has of its own; 0 = none.
	User uint32 `json:"user,omitempty"`
	// Agent is the agent's process, once it has started.
	Agent proctree.Process `json:"agent,omitzero"`
}

const recordName = "worker.json"

func (p *Provider) dir(workerID string) string { return filepath.Join(p.workers, workerID) }

// Create starts an agent for the worker, unless one was started before.
func (p *Provider) Create(ctx context.Context, w app.WorkerSpec) (app.Resource, error) {
	if !safeName(w.WorkerID) {
		return app.Resource{}, fault.New(fault.Invalid, "worker id %q cannot be the name of a directory", w.WorkerID)
	}
	if err := enter(ctx, p.making); err != nil {
		return app.Resource{}, err
	}
	defer func() { <-p.making }()
	if err := p.adopt(); err != nil {
		return app.Resource{}, err
	}
	if r, _, err := p.find(w.WorkerID); err != nil {
		return app.Resource{}, err
	} else if r.Agent.PID != 0 {
		return p.resource(r), nil
	}
	// What is here is half of a try that did not come to its end: an agent may run, but
	// nobody recorded it.
	if err := p.destroy(ctx, w.WorkerID); err != nil {
		return app.Resource{}, err
	}
	agent, err := p.agent()
	if err != nil {
		return app.Resource{}, err
	}
	token, err := w.Token(ctx)
	if err != nil {
		return app.Resource{}, err
	}
	r, err := p.launch(ctx, agent, token, w)
	if err != nil {
		return app.Resource{}, errors.Join(err, p.destroy(context.WithoutCancel(ctx), w.WorkerID))
	}
	return p.resource(r), nil
}

// launch makes the directory and the tree, and starts the agent in them.
func (p *Provider) launch(ctx context.Context, agent string, token app.Token, w app.WorkerSpec) (record, error) {
	r := record{WorkerID: w.WorkerID, Provider: w.Provider}
	user, err := p.userOf(w.RunAs, &r.User, w.WorkerID)
	if err != nil {
		return r, err
	}
	dir := p.dir(w.WorkerID)
	work := filepath.Join(dir, "work")
	for _, d := range []string{dir, work} {
		if err := makeSearchable(d); err != nil {
			return r, err
		}
	}
	if err := p.write(r); err != nil {
		return r, err
	}
	tree, err := p.trees.Open(w.WorkerID)
	if err != nil {
		return r, fmt.Errorf("make the process tree of worker %s: %w", w.WorkerID, err)
	}
	limits, err := limit(tree, w)
	if err != nil {
		return r, err
	}
	if err := ctx.Err(); err != nil {
		return r, err // not wanted any more
	}
	cmd, err := p.start(tree, agent, dir, bootstrap.Bootstrap{
		WorkerID: w.WorkerID, Token: token.Value, AgentAddress: token.AgentAddress, RunAs: user, WorkDir: work, Limits: limits,
	})
	if err != nil {
		return r, err
	}
	main, _ := tree.Main()
	if r.Agent = main; r.Agent.PID == 0 {
		r.Agent.PID = cmd.Process.Pid // it has ended already
	}
	p.watchChild(w.WorkerID, cmd)
	return r, p.write(r)
}

// limit bounds the tree where this machine can; where it cannot, the worker's
// share is only reserved.
func limit(tree *proctree.Tree, w app.WorkerSpec) (bootstrap.Limits, error) {
	out := bootstrap.Limits{CPUMillis: w.CPUMillis, MemoryBytes: w.MemoryBytes}
	var l proctree.Limits
	if w.CPUMillis > 0 {
		l.CPUMillis = w.CPUMillis + agentCPUMillis
	}
	if w.MemoryBytes > 0 {
		l.MemoryBytes = w.MemoryBytes + agentMemory
	}
	if l == (proctree.Limits{}) {
		return out, nil
	}
	e, err := tree.Limit(l)
	if err != nil {
		return out, err
	}
	out.CPUEnforced, out.MemoryEnforced = e.CPU, e.Memory
	return out, nil
}

// start starts the agent as the leader of a session of its own, with nothing of
// ours but the descriptor of its bootstrap.
func (p *Provider) start(tree *proctree.Tree, agent, dir string, b bootstrap.Bootstrap) (*exec.Cmd, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the pipe of the agent's bootstrap: %w", err)
	}
	defer reader.Close()
	err = bootstrap.Write(writer, b) // it fits into the pipe
	if err = errors.Join(err, writer.Close()); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(agent, "--"+bootstrap.Flag, strconv.Itoa(bootstrap.FD))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	cmd.ExtraFiles = []*os.File{reader} // the first one is descriptor 3
	cmd.Env = []string{"PATH=" + defaultPath, "LANG=C.UTF-8", "HOME=" + dir, "TMPDIR=" + dir}
	if err := tree.Start(cmd); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "start the agent")
	}
	return cmd, nil
}

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	logName     = "agent.log"
)

// Stop tells the agent to stop and waits until it has ended, at most for grace.
func (p *Provider) Stop(ctx context.Context, workerID string, grace time.Duration) error {
	if !safeName(workerID) {
		return nil // never made here
	}
	if known, err := p.hasTree(workerID); err != nil || !known {
		return err
	}
	tree, err := p.trees.Open(workerID)
	if err != nil {
		return fmt.Errorf("open the process tree of worker %s: %w", workerID, err)
	}
	if err := tree.SignalMain(syscall.SIGTERM); err != nil {
		return fmt.Errorf("tell the agent of worker %s to stop: %w", workerID, err)
	}
	waiting, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := tree.WaitMain(waiting); err != nil && waiting.Err() == nil {
		return fmt.Errorf("wait for the agent of worker %s: %w", workerID, err)
	}
	return ctx.Err()
}

// Destroy ends every process of the worker and removes its directory.
func (p *Provider) Destroy(ctx context.Context, workerID string) error {
	if !safeName(workerID) {
		return nil // never made here
	}
	if err := enter(ctx, p.ending); err != nil {
		return err
	}
	defer func() { <-p.ending }()
	return p.destroy(ctx, workerID)
}

func (p *Provider) destroy(ctx context.Context, workerID string) error {
	if known, err := p.exists(workerID); err != nil || !known {
		return err
	}
	tree, err := p.trees.Open(workerID)
	if err != nil {
		return fmt.Errorf("open the process tree of worker %s: %w", workerID, err)
	}
	p.unwatch(workerID) // its end is no news from here on
	patience, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	if err := tree.Kill(patience); err != nil {
		return fmt.Errorf("end worker %s: %w", workerID, err)
	}
	if err := tree.Remove(); err != nil {
		return err
	}
	p.forget(workerID)
	// The record goes last: what is found of a worker says who it was.
	dir := p.dir(workerID)
	for _, name := range []string{"work", logName} {
		if err := removeAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return removeAll(dir)
}

// exists tells whether anything of the worker is here: its directory, or the
// record of its tree.
func (p *Provider) exists(workerID string) (bool, error) {
	if _, err := os.Lstat(p.dir(workerID)); err == nil {
		return true, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look for worker %s: %w", workerID, err)
	}
	return p.hasTree(workerID)
}

func (p *Provider) hasTree(workerID string) (bool, error) {
	names, err := p.trees.List()
	return slices.Contains(names, workerID), err
}

// find reads what is here of a worker. Where its agent was started, Agent is set
// and the tree is there; also where the record of that was not written any more.
func (p *Provider) find(workerID string) (record, *proctree.Tree, error) {
	r, err := p.read(workerID)
	if err != nil {
		r = record{WorkerID: workerID} // begun and not recorded
	}
	recorded, err := p.hasTree(workerID)
	if err != nil || !recorded && r.Agent.PID == 0 {
		return r, nil, err
	}
	tree, err := p.trees.Open(workerID)
	if err != nil {
		return r, nil, fmt.Errorf("open the process tree of worker %s: %w", workerID, err)
	}
	if main, _ := tree.Main(); r.Agent.PID == 0 {
		r.Agent = main
	}
	return r, tree, nil
}

// removeAll removes a directory, also what a job made read-only.
func removeAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the directory of a worker: %w", err)
	}
	return nil
}

// List returns every worker of which something is here.
func (p *Provider) List(context.Context) ([]app.Resource, error) {
	ids, err := p.ids()
	if err != nil {
		return nil, err
	}
	var out []app.Resource
	for _, id := range ids {
		r, err := p.read(id)
		if err != nil {
			r = record{WorkerID: id} // begun and not recorded
		}
		out = append(out, p.resource(r))
	}
	return out, nil
}

func (p *Provider) ids() ([]string, error) {
	entries, err := os.ReadDir(p.workers)
	if err != nil {
		return nil, fmt.Errorf("list the workers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && safeName(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (p *Provider) resource(r record) app.Resource {
	out := app.Resource{WorkerID: r.WorkerID, Name: "process/" + r.WorkerID, Details: map[string]string{
		"instance": p.instance, "dir": p.dir(r.WorkerID),
	}}
	if r.Agent.PID != 0 {
		out.Details["pid"] = strconv.Itoa(r.Agent.PID)
	}
	return out
}

func (p *Provider) read(workerID string) (record, error) {
	var r record
	raw, err := os.ReadFile(filepath.Join(p.dir(workerID), recordName))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(raw, &r)
}

func (p *Provider) write(r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of worker %s: %w", r.WorkerID, err)
	}
	return writeFile(filepath.Join(p.dir(r.WorkerID), recordName), raw)
}

// safeName keeps an id from naming anything but a directory of its own.
func safeName(id string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	return id != "" && len(id) <= 64 && strings.Trim(id, letters) == ""
}

// lastWords is the end of what an agent wrote, for the reason of its end.
func (p *Provider) lastWords(workerID string) string {
	f, err := os.Open(filepath.Join(p.dir(workerID), logName))
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 300
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd)
	}
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(strings.ToValidUTF8(string(raw), "?")), "\n")
	return strings.TrimSpace(strings.ReplaceAll(lines[len(lines)-1], "\x00", ""))
}
