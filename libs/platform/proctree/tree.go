package proctree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Tree is a named tree of processes. Safe for concurrent use; one process at a
// time should own it.
type Tree struct {
	root *Root
	name string
	file string
	// reopened: another process made it, so less is known about it.
	reopened bool

	mu sync.Mutex // guards st
	st state
}

// Name returns the name that the tree was opened with.
func (t *Tree) Name() string { return t.name }

// Mode says how this tree is held together.
func (t *Tree) Mode() Mode { return t.st.Mode }

// Start starts a command in the tree, as the leader of a session of its own and
// with umask 022 where the kernel allows to set that for one thread. The child is
// in the tree, limits included, before it runs an instruction of its own. Cmd's
// path and directory should be absolute. The marker is added to its environment.
//
// All children of a root are started by one thread that lives as long as the
// root, so SysProcAttr.Pdeathsig means the death of this process. The caller
// waits for cmd as usual.
func (t *Tree) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	t.mu.Lock()
	marker, in := MarkerEnv+"="+t.st.ID, t.st.Dirs.clone()
	t.mu.Unlock()
	cmd.Env = append(slices.DeleteFunc(slices.Clone(cmd.Env), func(kv string) bool {
		return strings.HasPrefix(kv, MarkerEnv+"=")
	}), marker)

	r := t.root
	r.mu.Lock() // a child that ends at once must be known before the reaper looks
	err := r.spawn.start(cmd, in)
	if err == nil && r.stopper != nil {
		r.started[cmd.Process.Pid] = struct{}{}
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	// Unreadable means it has ended and somebody else reaped it: nothing to record.
	if p, ok := identify(cmd.Process.Pid); ok {
		t.mu.Lock()
		t.st.Started = append(t.st.Started, p)
		err = t.save()
		t.mu.Unlock()
		if err != nil {
			return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
		}
	}
	return nil
}

// Main is the process that was started last, and whether it still runs.
func (t *Tree) Main() (Process, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.st.Started) == 0 {
		return Process{}, false
	}
	p := t.st.Started[len(t.st.Started)-1]
	return p, running(p)
}

// WaitMain returns when the main process has ended, or with ctx's error. It works
// for a tree that another process started; it does not reap.
func (t *Tree) WaitMain(ctx context.Context) error {
	p, ok := t.Main()
	if !ok {
		return nil
	}
	return waitExit(ctx, p)
}

// Processes are the living members of the tree; zombies are not.
func (t *Tree) Processes() ([]Process, error) {
	t.mu.Lock()
	st := t.st
	st.Started = slices.Clone(st.Started)
	st.Dirs = st.Dirs.clone()
	t.mu.Unlock()
	if st.Mode == Groups {
		return members(st, !t.reopened, t.root.adopted(t))
	}
	return st.Dirs.processes()
}

// Wait returns when the tree is empty, or with ctx's error. It is event-driven:
// it waits for the end of the members that it sees and looks again.
func (t *Tree) Wait(ctx context.Context) error {
	for {
		ps, err := t.Processes()
		if err != nil || len(ps) == 0 {
			return err
		}
		if err := waitAll(ctx, ps); err != nil {
			return err
		}
	}
}

// Signal sends a signal to every process of the tree.
func (t *Tree) Signal(sig syscall.Signal) error {
	ps, err := t.Processes()
	if err != nil {
		return err
	}
	return signalAll(ps, sig)
}

// SignalMain sends a signal to the main process alone; one that has ended is no error.
func (t *Tree) SignalMain(sig syscall.Signal) error {
	main, ok := t.Main()
	if !ok {
		return nil
	}
	return signalAll([]Process{main}, sig)
}

// killRound is how long one round of killing waits before it looks for what was
// forked meanwhile, or what came out of an uninterruptible sleep.
const killRound = time.Second

// Kill ends every process of the tree and returns when nothing is left; an empty
// tree is no error. When ctx ends first it returns a *LeftoverError.
func (t *Tree) Kill(ctx context.Context) error {
	for {
		ps, err := t.Processes()
		if err != nil {
			return fmt.Errorf("listing process tree %s: %w", t.name, err)
		}
		if len(ps) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return &LeftoverError{Tree: t.name, Left: ps, Err: context.Cause(ctx)}
		}
		if err := t.killOnce(ps); err != nil {
			return fmt.Errorf("killing process tree %s: %w", t.name, err)
		}
		round, cancel := context.WithTimeout(ctx, killRound)
		_ = waitAll(round, ps) // whoever is left is listed again
		cancel()
	}
}

// killOnce sends KILL to all; what forks must not win against the loop, so it is
// held still first.
func (t *Tree) killOnce(ps []Process) error {
	t.mu.Lock()
	d := t.st.Dirs.clone()
	t.mu.Unlock()
	if done, err := d.killAll(); done || err != nil {
		return err
	}
	thaw := d.freeze()
	defer thaw()
	const stopRounds = 20
	for range stopRounds {
		if t.Mode() == Groups {
			if err := signalAll(ps, syscall.SIGSTOP); err != nil {
				return err
			}
		}
		more, err := t.Processes()
		if err != nil {
			return err
		}
		grown := false
		for _, p := range more {
			if !slices.Contains(ps, p) {
				ps, grown = append(ps, p), true
			}
		}
		if !grown {
			break
		}
	}
	return signalAll(ps, syscall.SIGKILL)
}

// Limit sets the limits of the tree as a whole, before or after Start, and says
// which of them hold. What cannot be enforced here is no error; a value that no
// process could live with is fault.Invalid.
func (t *Tree) Limit(l Limits) (Enforced, error) {
	var wrong fault.Fields
	if l.MemoryBytes < 0 || l.MemoryBytes > 0 && l.MemoryBytes < MinMemoryBytes {
		wrong.Add("memory", "%d bytes; use 0 for no limit or at least %d", l.MemoryBytes, MinMemoryBytes)
	}
	if l.CPUMillis < 0 || l.CPUMillis > 0 && l.CPUMillis < 10 {
		wrong.Add("cpu", "%d thousandths of a core; use 0 for no limit or at least 10", l.CPUMillis)
	}
	if l.PIDs < 0 || l.PIDs == 1 {
		wrong.Add("pids", "%d; use 0 for no limit or at least 2", l.PIDs)
	}
	if err := wrong.Err("the limit"); err != nil {
		return Enforced{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.st.Mode == Groups || l == (Limits{}) {
		return Enforced{}, nil
	}
	if t.st.Dirs.addControllers(t.root.place, l) {
		if err := t.save(); err != nil {
			return Enforced{}, err
		}
		if err := t.st.Dirs.create(); err != nil {
			return Enforced{}, fmt.Errorf("limiting process tree %s: %w", t.name, err)
		}
	}
	e, err := t.st.Dirs.limit(l)
	if err != nil {
		return e, fmt.Errorf("limiting process tree %s: %w", t.name, err)
	}
	return e, nil
}

// Usage is what the tree has used so far. Read it before Remove.
func (t *Tree) Usage() Usage {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.st.Dirs.usage()
}

// OOMKilled says whether the kernel killed a process of the tree because the tree
// was at its memory limit. Always false where that limit is not enforced.
func (t *Tree) OOMKilled() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.st.Dirs.oomKilled()
}

// Remove removes an empty tree and its record; one that is gone is no error. A
// tree with processes is fault.Precondition.
func (t *Tree) Remove() error {
	if ps, err := t.Processes(); err != nil {
		return fmt.Errorf("listing process tree %s: %w", t.name, err)
	} else if len(ps) > 0 {
		return fault.New(fault.Precondition, "process tree %s has %d processes: kill it first", t.name, len(ps))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.st.Dirs.remove(); err != nil {
		return fmt.Errorf("removing process tree %s: %w", t.name, err)
	}
	if t.file != "" {
		// Trees that a killed process inside this one made for itself.
		t.root.place.sweep(inside(t.st.ID))
		if err := os.Remove(t.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the record of process tree %s: %w", t.name, err)
		}
	}
	t.root.closed(t)
	return nil
}
