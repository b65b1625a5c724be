package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// details is what `job get -o json` says.
type details struct {
	ID            string    `json:"id"`
	State         string    `json:"state"`
	Attempt       int       `json:"attempt"`
	ExitCode      *int      `json:"exit_code"`
	Reason        string    `json:"reason"`
	WorkerID      string    `json:"worker_id"`
	CorrelationID string    `json:"correlation_id"`
	CreatedAt     time.Time `json:"created_at"`
	Failure       *struct {
		Category string `json:"category"`
		Code     string `json:"code"`
		Message  string `json:"message"`
		Advice   string `json:"advice"`
	} `json:"failure"`
	Attempts []struct {
		Number   int  `json:"number"`
		ExitCode *int `json:"exit_code"`
	} `json:"attempts"`
}

// eventView is what an event looks like with -o json.
type eventView struct {
	ID            string          `json:"id"`
	Type          string          `json:"type"`
	Position      int64           `json:"position"`
	Aggregate     string          `json:"aggregate"`
	Namespace     string          `json:"namespace"`
	CorrelationID string          `json:"correlation_id"`
	CausationID   string          `json:"causation_id"`
	Actor         string          `json:"actor"`
	Time          time.Time       `json:"time"`
	Data          json.RawMessage `json:"data"`
}

// submit queues a job; args are the options and the command.
func submit(t *testing.T, c *system.Client, args ...string) string {
	t.Helper()
	out, errs, code := c.Hodei(append([]string{"submit"}, args...)...)
	if code != 0 {
		t.Fatalf("submit %v: exit %d: %s", args, code, errs)
	}
	return strings.TrimSpace(out)
}

func look(c *system.Client, id string) details {
	var d details
	c.JSON(&d, "job", "get", id)
	return d
}

func history(c *system.Client, id string) []eventView {
	var events []eventView
	c.JSON(&events, "job", "history", id)
	return events
}

// reaches waits until the job is in one of the states. A job that has ended in
// another never will be, and fails the test at once.
func reaches(t *testing.T, c *system.Client, id string, within time.Duration, states ...string) details {
	t.Helper()
	var d details
	c.Until(within, fmt.Sprintf("job %s is %v", id, states), func() (bool, string) {
		d = look(c, id)
		if slices.Contains(states, d.State) {
			return true, ""
		}
		if slices.Contains([]string{"SUCCEEDED", "FAILED", "CANCELLED", "TIMEOUT"}, d.State) {
			t.Fatalf("job %s is %s, not %v: %s", id, d.State, states, d.Reason)
		}
		return false, fmt.Sprintf("%+v", d)
	})
	return d
}

// scratch is a directory that jobs write to: other users than the test's.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "hodei-e2e-") //nolint:usetesting // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// shared is a new file in a scratch directory that every job may write to: workers
// that exist at the same time run their jobs as different users, so the next attempt
// may be somebody else's.
func shared(t *testing.T, dir, name string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	return file
}

// gate is a file that jobs wait for.
type gate string

// wait is the shell's line that waits for it.
func (g gate) wait() string { return "while [ ! -e " + string(g) + " ]; do sleep 0.1; done" }

func (g gate) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(string(g), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// linesOf are the lines of a file; none where it is empty or not there yet.
func linesOf(t *testing.T, file string) []string {
	t.Helper()
	content, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(content) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
}

// pidFrom waits until a job has written its process id into a file.
func pidFrom(t *testing.T, c *system.Client, file string) int {
	t.Helper()
	var pid int
	c.Until(30*time.Second, "the job says its process id", func() (bool, string) {
		lines := linesOf(t, file)
		if len(lines) == 0 {
			return false, "nothing yet"
		}
		_, err := fmt.Sscan(lines[len(lines)-1], &pid)
		return err == nil, lines[len(lines)-1]
	})
	return pid
}

// agentOf is the process id of the agent that has the job.
func agentOf(t *testing.T, c *system.Client, id string) int {
	t.Helper()
	var w struct {
		Details map[string]string `json:"details"`
	}
	c.JSON(&w, "worker", "get", look(c, id).WorkerID)
	var pid int
	if _, err := fmt.Sscan(w.Details["pid"], &pid); err != nil {
		t.Fatalf("the worker does not say its agent's pid: %v", w.Details)
	}
	return pid
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal %s to %d: %v", sig, pid, err)
	}
}

// runs tells whether there is such a process, and it has not ended.
func runs(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// gone waits until a process is no more.
func gone(c *system.Client, pid int) {
	c.Until(10*time.Second, fmt.Sprintf("process %d is gone", pid), func() (bool, string) { return !runs(pid), "" })
}

// inOrder asserts of a journal, to which each attempt of a job writes its number
// again and again, that no attempt wrote after a later one had begun.
func inOrder(t *testing.T, journal string) {
	t.Helper()
	last := ""
	for n, l := range linesOf(t, journal) {
		if l < last {
			t.Fatalf("line %d of the journal: attempt %s wrote after attempt %s had begun", n+1, l, last)
		}
		last = l
	}
}

// atRest waits until no worker is left and all services have handled the log, and
// asserts every invariant.
func atRest(t *testing.T, c *system.Client, cfg check.Config) {
	t.Helper()
	c.Until(60*time.Second, "no worker is left", func() (bool, string) {
		retire(c) // one that came too late for its job waits for another
		out, errs, _ := c.Hodei("worker", "list", "-o", "json")
		return strings.TrimSpace(out) == "[]", out + errs
	})
	c.Until(30*time.Second, "every service has handled the log", func() (bool, string) {
		var status struct {
			Services []struct {
				Name string `json:"name"`
				Lag  int64  `json:"lag"`
			} `json:"services"`
		}
		c.JSON(&status, "status")
		for _, s := range status.Services {
			if s.Lag > 0 {
				return false, fmt.Sprintf("%+v", s)
			}
		}
		return len(status.Services) > 0, ""
	})
	cfg.AtRest = true
	r := check.Assert(t, cfg)
	t.Logf("%d events, %d jobs %v, %d workers", r.Events, r.Jobs, r.JobStates, r.Workers)
}
