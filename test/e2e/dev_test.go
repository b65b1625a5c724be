package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// checked asserts every invariant of a platform that is at rest, and stops it.
func checked(t *testing.T, d *system.Dev) {
	t.Helper()
	atRest(t, &d.Client, check.Config{PostgresURL: d.PostgresURL(), NATS: d.Conn()})
	stopped(t, d)
}

// stopped stops it and looks whether anything is left.
func stopped(t *testing.T, d *system.Dev) {
	t.Helper()
	d.Down()
	if left := d.Processes(); len(left) > 0 {
		t.Errorf("after hodei dev has stopped there is still\n%s", strings.Join(left, "\n"))
	}
}

func TestDevStopsCleanlyAndGoesOn(t *testing.T) {
	t.Parallel()
	d := system.NewDev(t, "data", "--workers", "2")
	ready := d.Up()
	if !strings.Contains(ready, "clients "+d.Listen) || !strings.Contains(ready, "data "+d.DataDir) {
		t.Errorf("the ready line does not say where it is: %s", ready)
	}
	if out, errs, code := d.Hodei("run", "--", "sh", "-c", "echo hello; exit 3"); out != "hello\n" || code != 3 {
		t.Errorf("the first job: %q, exit %d\n%s", out, code, errs)
	}

	second := d.Command()
	if code := second.Wait(t, 20*time.Second); code != 1 {
		t.Errorf("a second dev on the same directory exits with %d", code)
	}
	if said := second.Stderr.String(); !strings.Contains(said, d.DataDir) || !strings.Contains(said, fmt.Sprint(d.Running().PID())) {
		t.Errorf("a second dev on the same directory does not say who has it: %s", said)
	}

	dir := scratch(t)
	g := gate(filepath.Join(dir, "gate"))
	var ids []string
	for i := range 3 {
		file := shared(t, dir, fmt.Sprint(i))
		ids = append(ids, submit(t, &d.Client, "--", "sh", "-c", "echo $HODEI_ATTEMPT >>"+file+"; "+g.wait()))
	}
	for _, id := range ids[:2] {
		reaches(t, &d.Client, id, 30*time.Second, "RUNNING")
	}
	stopped(t, d)
	down := time.Now()

	d.Up()
	for _, id := range ids[:2] {
		requeued := false
		for _, e := range history(&d.Client, id) {
			requeued = requeued || e.Type == "JobRequeued" && e.Time.Before(down)
		}
		if !requeued {
			t.Errorf("job %s ran when dev was stopped and was not queued again before its end", id)
		}
	}
	g.open(t)
	for i, id := range ids {
		want := 2
		if i == 2 {
			want = 1
		}
		if j := reaches(t, &d.Client, id, 60*time.Second, "SUCCEEDED"); j.Attempt != want {
			t.Errorf("job %d has attempt %d, not %d", i, j.Attempt, want)
		}
		if starts := linesOf(t, filepath.Join(dir, fmt.Sprint(i))); len(starts) != want {
			t.Errorf("job %d started %v times, not %d", i, starts, want)
		}
	}
	checked(t, d)
}

func TestDevsSideBySideAndLongDirectories(t *testing.T) {
	t.Parallel()
	long := system.NewDev(t, strings.Repeat("a-long-name-of-a-directory/", 6)+"data")
	if len(long.DataDir) <= 107 {
		t.Fatalf("%s is not long", long.DataDir)
	}
	short := system.NewDev(t, "data")
	for _, d := range []*system.Dev{long, short} {
		d.Up()
	}
	for _, d := range []*system.Dev{long, short} {
		if out, errs, code := d.Hodei("run", "--name", "mine", "--", "echo", d.Listen); out != d.Listen+"\n" || code != 0 {
			t.Errorf("a job on %s: %q, exit %d\n%s", d.DataDir, out, code, errs)
		}
		var jobs []details
		d.JSON(&jobs, "job", "list")
		if len(jobs) != 1 {
			t.Errorf("%s has %d jobs, not its own alone", d.DataDir, len(jobs))
		}
	}
	for _, d := range []*system.Dev{long, short} {
		checked(t, d)
	}
}

func TestDevIsKilledWhileJobsRun(t *testing.T) {
	t.Parallel()
	d := system.NewDev(t, "data", "--workers", "1")
	d.Up()
	dir := scratch(t)
	g := gate(filepath.Join(dir, "gate"))
	journal := shared(t, dir, "journal")
	running := submit(t, &d.Client, "--", "sh", "-c",
		"echo running $HODEI_ATTEMPT >>"+journal+"; i=0; while [ ! -e "+string(g)+" ]; do i=$((i+1)); echo line $i; sleep 0.1; done; echo end $i; echo $i >"+journal+".lines")
	var queued []string
	for i := range 2 {
		queued = append(queued, submit(t, &d.Client, "--", "sh", "-c", fmt.Sprintf("echo queued%d $HODEI_ATTEMPT >>%s", i, journal)))
	}
	d.Until(30*time.Second, "the job has begun", func() (bool, string) { return len(linesOf(t, journal)) > 0, "" })
	reaches(t, &d.Client, running, 10*time.Second, "RUNNING")
	agent := agentOf(t, &d.Client, running)

	d.Kill()
	if err := syscall.Kill(agent, 0); err != nil {
		t.Fatalf("the agent did not survive: %v", err)
	}
	d.Up()
	g.open(t)
	if j := reaches(t, &d.Client, running, 60*time.Second, "SUCCEEDED"); j.Attempt != 1 {
		t.Errorf("the job that ran has attempt %d", j.Attempt)
	}
	for _, id := range queued {
		reaches(t, &d.Client, id, 60*time.Second, "SUCCEEDED")
	}
	if got := strings.Join(linesOf(t, journal), ","); got != "running 1,queued0 1,queued1 1" {
		t.Errorf("what started: %s", got)
	}
	var n int
	if _, err := fmt.Sscan(linesOf(t, journal+".lines")[0], &n); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	fmt.Fprintf(&want, "end %d\n", n)
	if out, errs, _ := d.Hodei("job", "logs", running); out != want.String() {
		t.Errorf("the output is not whole: %d bytes of %d\n%s", len(out), want.Len(), errs)
	}
	checked(t, d)
}

// A worker that takes its time keeps its job SCHEDULED, and the next one PENDING.
func TestCancelBeforeAWorkerHasTheJob(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	g := gate(filepath.Join(dir, "gate"))
	agent := filepath.Join(dir, "agent")
	script := fmt.Sprintf("#!/bin/sh\n%s\nexec %s \"$@\"\n", g.wait(), filepath.Join(os.Getenv("HODEI_BIN"), "hodei-agent"))
	if err := os.WriteFile(agent, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := system.NewDev(t, "data", "--workers", "1", "--agent", agent)
	d.Up()
	ran := filepath.Join(dir, "ran")
	scheduled := submit(t, &d.Client, "--", "sh", "-c", "echo ran >"+ran)
	reaches(t, &d.Client, scheduled, 20*time.Second, "SCHEDULED")
	pending := submit(t, &d.Client, "--", "sh", "-c", "echo ran >"+ran)
	if j := look(&d.Client, pending); j.State != "PENDING" {
		t.Errorf("the second job is %s", j.State)
	}
	for _, id := range []string{pending, scheduled} {
		var j details
		d.JSON(&j, "job", "cancel", id)
		if j.State != "CANCELLED" || j.Attempt != 0 {
			t.Errorf("a job that no worker has is %s after its cancel, attempt %d", j.State, j.Attempt)
		}
		if _, _, code := d.Hodei("job", "wait", id); code != 130 {
			t.Errorf("job wait of a cancelled job: exit %d", code)
		}
		if _, errs, code := d.Hodei("job", "cancel", id); code > 1 {
			t.Errorf("a second cancel: exit %d: %s", code, errs)
		}
	}
	// The worker that was asked for comes, and takes another job.
	g.open(t)
	if out, errs, code := d.Hodei("run", "--", "echo", "next"); out != "next\n" || code != 0 {
		t.Errorf("the next job: %q, exit %d\n%s", out, code, errs)
	}
	if len(linesOf(t, ran)) > 0 {
		t.Error("a cancelled job ran")
	}
	checked(t, d)
}
