// Package guard is the second process of an agent whose provider cannot kill it: it
// ends what the agent runs when the agent cannot, because it was stopped, hangs or was
// killed. With it, an agent's lease is a fence (R5.6) as long as the machine itself
// runs.
//
//	agent ──pipe: "until"──▶ guard ── time is over, or the pipe ends ──▶ kills the trees
//
// It knows no job and no registry: only until when the agent may run something, on the
// clock of [uptime.Now].
package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"hodei.dev/agent/internal/uptime"
)

// Command is the argument that makes the agent's program a guard; the directory of
// the process trees follows.
const Command = "guard"

// pipeFD is where the guard reads.
const pipeFD = 3

// look is how often the guard looks at the clock while a limit is set: a timer stands
// still while the machine is suspended.
const look = time.Second

// sendPatience bounds one message: the pipe is empty unless the guard was stopped.
const sendPatience = 100 * time.Millisecond

// Guard is the agent's end. Its methods belong to one goroutine.
type Guard struct{ pipe *os.File }

// Start starts the program exe as the guard of the trees in a directory. It is in a
// session of its own: a signal for the agent's group is not for it. The caller reaps
// its children.
func Start(exe, trees string, stderr *os.File) (*Guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the guard's pipe: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, Command, trees)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{r}, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	return &Guard{w}, nil
}

// Until says until when the agent may run something; 0: it runs nothing. An error
// means that there is no guard any more.
func (g *Guard) Until(limit time.Duration) error {
	if err := g.pipe.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return fmt.Errorf("tell the guard: %w", err)
	}
	if _, err := g.pipe.Write(binary.BigEndian.AppendUint64(nil, uint64(limit))); err != nil {
		return fmt.Errorf("tell the guard: %w", err)
	}
	return nil
}

// Close tells the guard that the agent ends.
func (g *Guard) Close() { _ = g.pipe.Close() }

// Pipe is the guard's end, in the process that [Start] started.
func Pipe() *os.File { return os.NewFile(pipeFD, "guard") }

// Watch is the guard: it calls kill whenever the time that the agent gave is over, and
// once more when the agent has ended, and returns then.
func Watch(pipe io.Reader, now func() time.Duration, kill func(reason string)) error {
	limits, failed := make(chan time.Duration), make(chan error, 1)
	go func() { failed <- receive(pipe, limits) }()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var limit time.Duration
	for {
		select {
		case limit = <-limits:
		case <-tick.C:
		case err := <-failed:
			kill("its agent has ended")
			return err
		}
		if limit != 0 && now() >= limit {
			kill("its agent's lease is over, and the agent does not end it")
			limit = 0
		}
	}
}

func receive(pipe io.Reader, limits chan<- time.Duration) error {
	for {
		var m [8]byte
		if _, err := io.ReadFull(pipe, m[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("hear the agent: %w", err)
		}
		limits <- time.Duration(binary.BigEndian.Uint64(m[:]))
	}
}

// At is a moment of the agent's clock on that of the guard; the zero time is 0.
func At(t, now time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(uptime.Now()+t.Sub(now), 1)
}
