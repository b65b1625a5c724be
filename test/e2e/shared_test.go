package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// TestStories are told on one platform of eight processes at the same time; what
// they leave behind must hold together.
func TestStories(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Workers: 10})
	stories := map[string]func(*testing.T, *system.Client){
		"a running job is cancelled":                   cancelRunning,
		"Ctrl-C cancels":                               interrupted,
		"a job times out":                              timesOut,
		"a stopped agent is fenced":                    fenced,
		"a killed agent's job is queued again":         agentKilled,
		"a job that must not start twice":              neverTwice,
		"a job is tried three times":                   threeAttempts,
		"output to the byte":                           outputToTheByte,
		"what is wrong is refused":                     refused,
		"a job's events tell its story":                audited,
		"a search finds what was asked for":            searched,
		"the doors stay closed to other machines":      loopbackOnly,
		"the same job is queued once":                  queuedOnce,
		"of a file of jobs the whole lines are queued": brokenLines,
	}
	t.Run("stories", func(t *testing.T) {
		for name, tell := range stories {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				tell(t, s.For(t))
			})
		}
	})
	// By itself, since a worker that is brought takes any job that fits it, and the
	// other stories count on workers that the provisioner made.
	t.Run("an operator brings a worker", func(t *testing.T) { externalWorker(t, s.For(t)) })
	atRest(t, &s.Client, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn()})
	s.StopAll()
}

func cancelRunning(t *testing.T, c *system.Client) {
	t.Helper()
	file := filepath.Join(scratch(t), "pid")
	id := submit(t, c, "--", "sh", "-c", "trap '' TERM; echo $$ >"+file+"; while :; do sleep 1; done")
	pid := pidFrom(t, c, file)
	began := time.Now()
	if _, errs, code := c.Hodei("job", "cancel", id); code != 0 {
		t.Fatalf("cancel: exit %d: %s", code, errs)
	}
	reaches(t, c, id, 40*time.Second, "CANCELLED")
	t.Logf("a job that ignores TERM was CANCELLED after %s", time.Since(began).Round(10*time.Millisecond))
	gone(c, pid)
	if _, _, code := c.Hodei("job", "wait", id); code != 130 {
		t.Errorf("job wait: exit %d", code)
	}
}

func interrupted(t *testing.T, c *system.Client) {
	t.Helper()
	file := filepath.Join(scratch(t), "pid")
	run := c.Start(nil, "hodei", "run", "--name", "interrupted", "--", "sh", "-c", "echo up; echo $$ >"+file+"; exec sleep 600")
	pid := pidFrom(t, c, file)
	c.Until(20*time.Second, "the output is shown", func() (bool, string) { return run.Stdout.String() == "up\n", run.Stdout.String() })
	run.Signal(t, syscall.SIGINT)
	if code := run.Wait(t, 30*time.Second); code != 130 {
		t.Errorf("exit %d\n%s", code, run.Stderr.String())
	}
	gone(c, pid)
	// As `timeout` does it: to the process and to its group.
	twice := c.Start(nil, "hodei", "run", "--name", "interrupted", "--", "sh", "-c", "trap 'sleep 1; echo bye; exit' TERM; echo up; while :; do sleep 0.1; done")
	c.Until(20*time.Second, "the output is shown", func() (bool, string) { return twice.Stdout.String() == "up\n", twice.Stdout.String() })
	twice.Signal(t, syscall.SIGTERM)
	twice.Signal(t, syscall.SIGTERM)
	if code := twice.Wait(t, 30*time.Second); code != 130 || twice.Stdout.String() != "up\nbye\n" {
		t.Errorf("a signal sent twice at once: exit %d, %q\n%s", code, twice.Stdout.String(), twice.Stderr.String())
	}
	for _, j := range named(c, "interrupted") {
		reaches(t, c, j.ID, 10*time.Second, "CANCELLED")
	}
}

// named are the jobs of a name. The list follows the log: a job that has just ended
// may still be shown as it was.
func named(c *system.Client, name string) []jobView {
	var all, out []jobView
	c.JSON(&all, "job", "list", "--limit", "0")
	for _, j := range all {
		if j.Name == name {
			out = append(out, j)
		}
	}
	return out
}

func timesOut(t *testing.T, c *system.Client) {
	t.Helper()
	file := filepath.Join(scratch(t), "pid")
	out, errs, code := c.Hodei("run", "--name", "late", "--timeout", "1s", "--", "sh", "-c", "echo $$ >"+file+"; echo begun; sleep 600")
	if code != 124 || out != "begun\n" {
		t.Errorf("%q, exit %d\n%s", out, code, errs)
	}
	gone(c, pidFrom(t, c, file))
	jobs := named(c, "late")
	if len(jobs) != 1 {
		t.Fatalf("%+v", jobs)
	}
	if j := reaches(t, c, jobs[0].ID, 10*time.Second, "TIMEOUT"); j.Failure == nil || j.Failure.Category != "TIMEOUT" || !strings.Contains(j.Failure.Advice, "--timeout") {
		t.Errorf("the failure: %+v", j.Failure)
	}
}

// fenced stops an agent while its job runs on: nobody knows whether it lives, so its
// next attempt may begin only when nothing of the first is left.
func fenced(t *testing.T, c *system.Client) {
	t.Helper()
	dir := scratch(t)
	journal, g := shared(t, dir, "journal"), gate(filepath.Join(dir, "gate"))
	id := submit(t, c, "--", "sh", "-c", "while [ ! -e "+string(g)+" ]; do echo $HODEI_ATTEMPT >>"+journal+"; sleep 0.1; done; echo done")
	c.Until(30*time.Second, "the job has begun", func() (bool, string) { return len(linesOf(t, journal)) > 0, "" })
	reaches(t, c, id, 20*time.Second, "RUNNING")
	agent, lost := agentOf(t, c, id), look(c, id).WorkerID
	kill(t, agent, syscall.SIGSTOP)
	began := time.Now()
	c.Until(100*time.Second, "the second attempt runs", func() (bool, string) {
		lines := linesOf(t, journal)
		return len(lines) > 0 && lines[len(lines)-1] == "2", fmt.Sprintf("%+v", look(c, id))
	})
	t.Logf("the second attempt ran %s after its agent had been stopped", time.Since(began).Round(100*time.Millisecond))
	g.open(t)
	if j := reaches(t, c, id, 30*time.Second, "SUCCEEDED"); j.Attempt != 2 {
		t.Errorf("it ended as attempt %d", j.Attempt)
	}
	inOrder(t, journal)
	gone(c, agent)
	var worker []eventView
	c.JSON(&worker, "audit", "search", "--aggregate", "worker/"+lost, "--asc", "--limit", "0")
	var lostAt, terminated, requeued int64
	for _, e := range worker {
		switch e.Type {
		case "WorkerLost":
			lostAt = e.Position
		case "WorkerTerminated":
			terminated = e.Position
		}
	}
	for _, e := range history(c, id) {
		if e.Type == "JobRequeued" {
			requeued = e.Position
		}
	}
	if lostAt == 0 || terminated < lostAt || requeued < terminated {
		t.Errorf("lost at %d, terminated at %d, queued again at %d: not in this order", lostAt, terminated, requeued)
	}
}

func agentKilled(t *testing.T, c *system.Client) {
	t.Helper()
	dir := scratch(t)
	g, journal := gate(filepath.Join(dir, "gate")), shared(t, dir, "journal")
	id := submit(t, c, "--", "sh", "-c", "echo $$ >>"+journal+"; "+g.wait())
	first := pidFrom(t, c, journal)
	reaches(t, c, id, 20*time.Second, "RUNNING")
	kill(t, agentOf(t, c, id), syscall.SIGKILL)
	began := time.Now()
	var requeued eventView
	c.Until(10*time.Second, "the job is queued again", func() (bool, string) {
		for _, e := range history(c, id) {
			if e.Type == "JobRequeued" {
				requeued = e
			}
		}
		return requeued.ID != "", ""
	})
	t.Logf("queued again %s after its agent was killed", requeued.Time.Sub(began).Round(time.Millisecond))
	gone(c, first)
	g.open(t)
	if j := reaches(t, c, id, 30*time.Second, "SUCCEEDED"); j.Attempt != 2 {
		t.Errorf("it ended as attempt %d", j.Attempt)
	}
}

func neverTwice(t *testing.T, c *system.Client) {
	t.Helper()
	file := shared(t, scratch(t), "pid")
	run := c.Start(nil, "hodei", "run", "--name", "once", "--infrastructure-attempts", "0", "--", "sh", "-c", "echo $$ >>"+file+"; exec sleep 600")
	pid := pidFrom(t, c, file)
	id := named(c, "once")[0].ID
	reaches(t, c, id, 20*time.Second, "RUNNING")
	kill(t, agentOf(t, c, id), syscall.SIGKILL)
	if code := run.Wait(t, 60*time.Second); code != 125 {
		t.Errorf("exit %d\n%s", code, run.Stderr.String())
	}
	j := look(c, id)
	if j.State != "FAILED" || j.Failure == nil || j.Failure.Category != "WORKER_LOST" || !strings.Contains(j.Failure.Advice, "hodei") {
		t.Errorf("%s %+v", j.State, j.Failure)
	}
	if !strings.Contains(run.Stderr.String(), "what to do:") {
		t.Errorf("the user is not told what to do: %s", run.Stderr.String())
	}
	gone(c, pid)
	if starts := linesOf(t, file); len(starts) != 1 {
		t.Errorf("it started %d times", len(starts))
	}
}

func threeAttempts(t *testing.T, c *system.Client) {
	t.Helper()
	out, errs, code := c.Hodei("run", "--name", "thrice", "--max-attempts", "3", "--backoff-initial", "400ms", "--backoff-jitter", "0",
		"--", "sh", "-c", "echo attempt $HODEI_ATTEMPT; exit $HODEI_ATTEMPT")
	if code != 3 || out != "attempt 1\nattempt 2\nattempt 3\n" {
		t.Errorf("%q, exit %d\n%s", out, code, errs)
	}
	id := named(c, "thrice")[0].ID
	j := look(c, id)
	if j.State != "FAILED" || j.Attempt != 3 || len(j.Attempts) != 3 || j.ExitCode == nil || *j.ExitCode != 3 {
		t.Fatalf("%+v", j)
	}
	for i, a := range j.Attempts {
		if a.Number != i+1 || a.ExitCode == nil || *a.ExitCode != i+1 {
			t.Errorf("attempt %d: %+v", i+1, a)
		}
	}
	heldBack(t, history(c, id), 2)
	for n := 1; n <= 3; n++ {
		if out, _, code := c.Hodei("job", "logs", id, "--attempt", strconv.Itoa(n)); out != fmt.Sprintf("attempt %d\n", n) || code != 0 {
			t.Errorf("logs of attempt %d: %q, exit %d", n, out, code)
		}
	}
	if out, _, code := c.Hodei("job", "logs", id, "--attempt", "4"); out != "" || code == 0 {
		t.Errorf("logs of an attempt that never was: %q, exit %d", out, code)
	}
}

// heldBack fails unless the job was queued again so many times and placed again each
// time only when its backoff was over.
func heldBack(t *testing.T, events []eventView, want int) {
	t.Helper()
	times := 0
	var until time.Time
	for _, e := range events {
		switch e.Type {
		case "JobRequeued":
			times++
			var fact struct {
				NotBefore time.Time `json:"not_before"`
			}
			if err := json.Unmarshal(e.Data, &fact); err != nil {
				t.Fatal(err)
			}
			if until = fact.NotBefore; until.IsZero() {
				t.Errorf("queued again at %s without a backoff", e.Time)
			}
		case "JobAssigned", "JobScheduled":
			if e.Time.Before(until) {
				t.Errorf("%s at %s, before its backoff was over at %s", e.Type, e.Time, until)
			}
		}
	}
	if times != want {
		t.Errorf("queued again %d times, want %d", times, want)
	}
}
