package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that is started, killed, stopped and continued again and again.
type process struct {
	name, path string
	args, env  []string
	log        string

	mu      sync.Mutex // guards what follows
	cmd     *exec.Cmd
	exited  chan struct{}
	asked   bool      // we have ended it
	killed  *exec.Cmd // the last one that was ended with SIGKILL
	strange []string  // ends that nobody asked for
}

// start starts it where it does not run.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return nil
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	if err := cmd.Start(); err != nil {
		_ = log.Close() // the first error counts
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited, p.asked = cmd, exited, false
	go func() {
		_ = cmd.Wait() // how it ended is asked of the process state
		_ = log.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.asked {
			p.strange = append(p.strange, fmt.Sprintf("%s ended by itself at %s: %s: %s", p.name, time.Now().Format(clock), cmd.ProcessState, lastLine(p.log)))
		}
		close(exited)
	}()
	return nil
}

func (p *process) running() bool {
	if p.exited == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// signal sends a signal, if it runs.
func (p *process) signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		_ = p.cmd.Process.Signal(sig) // it may have just ended
	}
}

// kill ends it with SIGKILL.
func (p *process) kill() {
	p.mu.Lock()
	p.asked, p.killed = true, p.cmd
	exited, runs := p.exited, p.running()
	if runs {
		_ = p.cmd.Process.Kill() // it may have just ended
	}
	p.mu.Unlock()
	if runs {
		<-exited
	}
}

// stop ends it with SIGTERM; it has to exit with 0 in time, unless another fault kills it meanwhile.
func (p *process) stop(within time.Duration) error {
	p.mu.Lock()
	if !p.running() {
		p.mu.Unlock()
		return nil
	}
	p.asked = true
	cmd, exited := p.cmd, p.exited
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have just ended
	p.mu.Unlock()
	select {
	case <-exited:
	case <-time.After(within):
		p.kill()
		return fmt.Errorf("%s does not stop within %s: %s", p.name, within, lastLine(p.log))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if code := cmd.ProcessState.ExitCode(); code != 0 && p.killed != cmd {
		return fmt.Errorf("%s exits with %d after SIGTERM: %s", p.name, code, lastLine(p.log))
	}
	return nil
}

// ends are those that nobody asked for.
func (p *process) ends() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.strange...)
}

func lastLine(file string) string {
	content, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return lines[len(lines)-1]
}

// processesIn lists the processes that name a directory in their command or work below it.
func processesIn(dir string) (pids []int, commands []string) {
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, nil
	}
	for _, proc := range found {
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd")) // of one that has ended: nothing
		var pid int
		_, err = fmt.Sscan(filepath.Base(proc), &pid)
		if err == nil && pid != os.Getpid() && (strings.Contains(string(cmdline), dir) || strings.HasPrefix(cwd, dir)) {
			pids = append(pids, pid)
			commands = append(commands, fmt.Sprintf("%d: %s in %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " "), cwd))
		}
	}
	return pids, commands
}
