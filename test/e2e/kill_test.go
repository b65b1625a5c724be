package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/libs/domain/job"
	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// jobLine is a line of jobs.jsonl.
type jobLine struct {
	Name    string            `json:"name"`
	Command []string          `json:"command"`
	Labels  map[string]string `json:"labels"`
	Timeout string            `json:"timeout,omitempty"`
}

// sh is a job of the test: kind says what becomes of it.
func sh(kind string, n int, script string) jobLine {
	return jobLine{Name: fmt.Sprintf("%s-%d", kind, n), Command: []string{"sh", "-c", script}, Labels: map[string]string{"kind": kind}}
}

// twoHundred are the jobs of the issue: some fail, some are cancelled, some time
// out, one daemonises under an agent that is killed with -9.
func twoHundred(token string) []jobLine {
	var jobs []jobLine
	for i := range 130 {
		jobs = append(jobs, sh("good", i, fmt.Sprintf("echo out %d; echo err %d >&2", i, i)))
	}
	for i := range 40 {
		jobs = append(jobs, sh("bad", i, "exit 3"))
	}
	for i := range 14 {
		j := sh("slow", i, "sleep 600")
		j.Timeout = "1s"
		jobs = append(jobs, j)
	}
	for i := range 15 {
		jobs = append(jobs, sh("cancelled", i, "sleep 600"))
	}
	// The daemon leaves its session and its parent; only its worker's end may end it.
	return append(jobs, sh("daemon", 0, "setsid sh -c '"+token+"=1; while :; do sleep 1; done' >/dev/null 2>&1 & sleep 600"))
}

func TestEveryBinaryIsKilledOnTheWay(t *testing.T) {
	s := system.Start(t, system.Options{Workers: 8})
	token := fmt.Sprintf("hodei_e2e_%d", os.Getpid())

	var lines strings.Builder
	for _, j := range twoHundred(token) {
		b, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
	}
	out, errs, code := s.HodeiIn(lines.String(), "submit", "--file", "-")
	ids := strings.Fields(out)
	if code != 0 || len(ids) != 200 {
		t.Fatalf("submit: exit %d, %d ids\n%s", code, len(ids), errs)
	}

	for _, name := range system.Services {
		s.Kill(name)
		s.StartService(name)
	}
	for _, id := range ids[184:199] { // the cancelled ones
		s.Until(60*time.Second, "the cancel of "+id+" is taken", func() (bool, string) {
			out, errs, code := s.Hodei("job", "cancel", id)
			return code == 0, out + errs
		})
	}
	killAgentOf(t, s, ids[199], token)
	// The daemon's job is queued again with its budget; this time it is cancelled.
	s.Until(30*time.Second, "the daemon's job is queued again", func() (bool, string) {
		j := get(s, ids[199])
		return j.Attempt >= 2 || j.State == "PENDING" || j.State == "SCHEDULED", fmt.Sprintf("%+v", j)
	})
	if _, errs, code := s.Hodei("job", "cancel", ids[199]); code != 0 {
		t.Errorf("cancel the daemon's job: %s", errs)
	}

	s.Until(4*time.Minute, "every job has ended", func() (bool, string) {
		left := jobsIn(s, "PENDING", "SCHEDULED", "ASSIGNED", "RUNNING")
		if len(left) == 0 {
			return true, ""
		}
		return false, fmt.Sprintf("%d left, such as %+v", len(left), left[0])
	})
	s.Until(60*time.Second, "no worker is left", func() (bool, string) {
		retire(&s.Client) // one that came too late for its job waits for another
		out, errs, _ := s.Hodei("worker", "list", "-o", "json")
		return strings.TrimSpace(out) == "[]", out + errs
	})
	s.WaitReady()

	for kind, want := range map[string]string{"good": "SUCCEEDED", "bad": "FAILED", "slow": "TIMEOUT", "cancelled": "CANCELLED", "daemon": "CANCELLED"} {
		for _, j := range labelled(s, kind) {
			if j.State != want {
				t.Errorf("%s %s is %s: %s", j.Name, j.ID, j.State, j.Reason)
			}
		}
	}
	r := check.Assert(t, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn(), AtRest: true})
	t.Logf("%d events, %d jobs %v, %d workers", r.Events, r.Jobs, r.JobStates, r.Workers)
	if r.Jobs != 200 || r.JobStates[job.StateSucceeded] != 130 {
		t.Errorf("%d jobs, %v", r.Jobs, r.JobStates)
	}
	for _, id := range ids[:130] {
		if out, errs, _ := s.Hodei("job", "logs", id); !strings.HasPrefix(out, "out ") || !strings.HasPrefix(errs, "err ") {
			t.Errorf("logs of %s: %q %q", id, out, errs)
			break
		}
	}
	s.StopAll()
	if left := processes(t, token); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

type jobView struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Attempt  int    `json:"attempt"`
	Reason   string `json:"reason"`
	WorkerID string `json:"worker_id"`
}

func get(s *system.System, id string) jobView {
	var j jobView
	s.JSON(&j, "job", "get", id)
	return j
}

func jobsIn(s *system.System, states ...string) []jobView {
	var jobs []jobView
	s.JSON(&jobs, "job", "list", "--limit", "0", "--state", strings.Join(states, ","))
	return jobs
}

func labelled(s *system.System, kind string) []jobView {
	var jobs []jobView
	s.JSON(&jobs, "job", "list", "--limit", "0", "--label", "kind="+kind)
	return jobs
}

// killAgentOf waits until the job runs and its daemon lives, and kills the
// worker's agent alone with SIGKILL.
func killAgentOf(t *testing.T, s *system.System, id, token string) {
	t.Helper()
	s.Until(60*time.Second, "the daemon lives", func() (bool, string) {
		return len(processes(t, token)) > 0, fmt.Sprintf("%+v", get(s, id))
	})
	var w struct {
		Details map[string]string `json:"details"`
	}
	s.JSON(&w, "worker", "get", get(s, id).WorkerID)
	var pid int
	if _, err := fmt.Sscan(w.Details["pid"], &pid); err != nil {
		t.Fatalf("the worker does not say its agent's pid: %v", w.Details)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill the agent %d: %v", pid, err)
	}
	s.Until(20*time.Second, "the daemon of the dead attempt is gone", func() (bool, string) {
		left := processes(t, token)
		j := get(s, id)
		return len(left) == 0 || j.Attempt >= 2, fmt.Sprintf("%v %+v", left, j)
	})
}

// processes lists the commands of all processes that carry the token.
func processes(t *testing.T, token string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has just ended
		}
		if strings.Contains(string(b), token) && !strings.Contains(f, fmt.Sprintf("/%d/", os.Getpid())) {
			out = append(out, f+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}
