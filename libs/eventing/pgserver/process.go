package pgserver

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// process is a running server: our child, or one that was found.
type process interface {
	pid() int
	exited() <-chan struct{}
	// signal sends a signal; nil where the process has ended.
	signal(sig syscall.Signal) error
}

// end stops a server: SIGINT is postgres's fast shutdown, SIGQUIT its immediate one.
func end(ctx context.Context, p process) error {
	if err := p.signal(syscall.SIGINT); err != nil {
		return err
	}
	select {
	case <-p.exited():
		return nil
	case <-ctx.Done():
	}
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil {
			return errors.Join(ctx.Err(), err)
		}
		select {
		case <-p.exited():
			return ctx.Err()
		case <-time.After(5 * time.Second):
		}
	}
	return ctx.Err()
}

// child is a server that this process started.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// startChild starts cmd. The system binds a child to the thread that started it,
// not to the process, so that thread is kept until the child has ended.
func startChild(cmd *exec.Cmd, bind bool) (*child, error) {
	if bind {
		bindToParent(cmd.SysProcAttr)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		if bind {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
		}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		defer close(c.done)
		_ = cmd.Wait() // how it ended stands in its log
	}()
	return c, <-started
}

func (c *child) pid() int                { return c.cmd.Process.Pid }
func (c *child) exited() <-chan struct{} { return c.done }

func (c *child) signal(sig syscall.Signal) error {
	select {
	case <-c.done:
		return nil
	default:
		return ended(c.cmd.Process.Signal(sig))
	}
}

// found is a server that somebody else started.
type found struct {
	id   int
	done chan struct{}
}

func newFound(pid int) *found {
	f := &found{id: pid, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for alive(pid) {
			<-tick.C
		}
	}()
	return f
}

func (f *found) pid() int                { return f.id }
func (f *found) exited() <-chan struct{} { return f.done }

func (f *found) signal(sig syscall.Signal) error { return ended(syscall.Kill(f.id, sig)) }

// ended makes "there is no such process" no error.
func ended(err error) error {
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
