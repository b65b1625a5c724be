package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Client is the command line of a user of a platform. Its methods fail the test
// that it belongs to, from that test's goroutine only.
type Client struct {
	tb  testing.TB
	bin string
	env []string
}

// For is the same client for another test, such as a part of this one.
func (c *Client) For(tb testing.TB) *Client {
	tb.Helper()
	return &Client{tb: tb, bin: c.bin, env: c.env}
}

// Until asks again and again until cond holds; after the deadline it fails the
// test with what cond said last.
func (c *Client) Until(within time.Duration, what string, cond func() (bool, string)) {
	c.tb.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	for {
		ok, seen := cond()
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			c.tb.Fatalf("after %s it is not so that %s: %s", within, what, seen)
		}
	}
}

// Hodei runs the command line and returns what it printed and its exit code.
func (c *Client) Hodei(args ...string) (stdout, stderr string, code int) {
	c.tb.Helper()
	return c.HodeiIn("", args...)
}

// HodeiIn is Hodei with a standard input.
func (c *Client) HodeiIn(stdin string, args ...string) (stdout, stderr string, code int) {
	c.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "hodei"), args...)
	cmd.Env = c.env
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.tb.Fatalf("hodei %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// JSON runs a command with -o json and decodes its answer; it fails the test
// where the command does.
func (c *Client) JSON(into any, args ...string) {
	c.tb.Helper()
	// Options end at the command of a job, and -o is one of ours.
	if out, code := c.try(into, append([]string{"-o", "json"}, args...)...); code != 0 {
		c.tb.Fatalf("hodei %v: exit %d: %s", args, code, out)
	}
}

func (c *Client) try(into any, args ...string) (string, int) {
	c.tb.Helper()
	out, errs, code := c.Hodei(args...)
	if code != 0 {
		return out + errs, code
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Sprintf("%v in %s", err, out), -1
	}
	return out, 0
}

// Start starts one of bin/'s programs, with env besides its usual environment. It is
// killed at the end of the test if it still runs then.
func (c *Client) Start(env []string, program string, args ...string) *Running {
	c.tb.Helper()
	r := &Running{cmd: exec.Command(filepath.Join(c.bin, program), args...), exited: make(chan struct{})}
	r.cmd.Env = append(append([]string{}, c.env...), env...)
	r.cmd.Stdout, r.cmd.Stderr = &r.Stdout, &r.Stderr
	if err := r.cmd.Start(); err != nil {
		c.tb.Fatalf("start %s: %v", program, err)
	}
	go func() {
		_ = r.cmd.Wait() // how it ended is asked of the process state
		close(r.exited)
	}()
	c.tb.Cleanup(func() {
		if !r.over() {
			_ = r.cmd.Process.Kill() // it may have just ended
			<-r.exited
		}
	})
	return r
}

// Running is a program that was started.
type Running struct {
	// Stdout and Stderr are what it has printed so far.
	Stdout, Stderr Output

	cmd    *exec.Cmd
	exited chan struct{}
}

// PID is its process id.
func (r *Running) PID() int { return r.cmd.Process.Pid }

func (r *Running) over() bool {
	select {
	case <-r.exited:
		return true
	default:
		return false
	}
}

// Signal sends it a signal.
func (r *Running) Signal(tb testing.TB, sig syscall.Signal) {
	tb.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		tb.Fatalf("signal %s to %s: %v", sig, r.cmd.Path, err)
	}
}

// Wait waits for its end and returns its exit code, or the negative number of the
// signal that killed it. It fails the test when that takes too long.
func (r *Running) Wait(tb testing.TB, within time.Duration) int {
	tb.Helper()
	select {
	case <-r.exited:
	case <-time.After(within):
		tb.Fatalf("%v does not end within %s\n%s%s", r.cmd.Args, within, r.Stdout.String(), r.Stderr.String())
	}
	if ws, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return -int(ws.Signal())
	}
	return r.cmd.ProcessState.ExitCode()
}

// Output is a buffer that may be read while it is written.
type Output struct {
	mu    sync.Mutex // guards bytes
	bytes bytes.Buffer
}

// Write adds p.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.Write(p)
}

// String is all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.String()
}
