//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/agent/internal/registrytest"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// What an agent runs ends with its lease, or with the agent, also where the agent
// itself can do nothing: its guard does.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name string
		sig  syscall.Signal
	}{{"stopped", syscall.SIGSTOP}, {"killed", syscall.SIGKILL}} {
		t.Run(c.name, func(t *testing.T) {
			r := registrytest.New(t)
			r.Heartbeat, r.Lease, r.Grace = "100ms", "1s", "500ms"
			p := start(t, nil, nil, external(t, r)...)
			s, _ := r.Attach(t)
			file := filepath.Join(workDir(t), "pid")
			s.Run(t, &registryv1.Run{JobId: "j", Attempt: 1, Command: []string{"sh", "-c", "trap '' TERM; setsid sleep 1000 & echo $! $$ >" + file + "; wait"}}, "")
			s.Accepted(t, "j", 1)
			s.Start(t, "j", 1)
			var daemon, job int
			eventually(t, "the job's pids", func() bool {
				raw, err := os.ReadFile(file)
				n, serr := fmt.Sscan(string(raw), &daemon, &job)
				return err == nil && serr == nil && n == 2
			})
			if err := p.cmd.Process.Signal(c.sig); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the end of what it runs", func() bool { return !lives(daemon) && !lives(job) })
			if c.sig == syscall.SIGKILL {
				return
			}
			if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			s, _ = r.Attach(t)
			if res := s.Result(t, "j", 1); res.GetCategory() != "INFRASTRUCTURE" || !strings.Contains(res.GetFailureMessage(), "lease expired") {
				t.Errorf("%v", res)
			}
			s.AckResult(t, "j", 1)
			s.Terminate(t, "done")
			s.Stopping(t)
			s.Closed(t)
			p.exits(t, 0)
		})
	}
}

func lives(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(raw), ") Z ")
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(registrytest.Patience); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
