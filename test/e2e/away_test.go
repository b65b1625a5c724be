package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"hodei.dev/test/system"
)

// An agent that hears nothing for the length of its lease ends its job by itself, so
// that the platform, when it is back, may run it again.
func TestDevIsAwayForLongerThanTheLease(t *testing.T) {
	t.Parallel()
	d := system.NewDev(t, "data", "--workers", "2")
	d.Up()
	dir := scratch(t)
	journal, pids, g := shared(t, dir, "journal"), shared(t, dir, "pids"), gate(filepath.Join(dir, "gate"))
	id := submit(t, &d.Client, "--", "sh", "-c",
		"echo $$ >>"+pids+"; while [ ! -e "+string(g)+" ]; do echo $HODEI_ATTEMPT >>"+journal+"; sleep 0.1; done")
	pid := pidFrom(t, &d.Client, pids)
	reaches(t, &d.Client, id, 20*time.Second, "RUNNING")
	d.Kill()
	began := time.Now()
	d.Until(45*time.Second, "the agent has ended its job", func() (bool, string) { return !runs(pid), "" })
	t.Logf("the agent ended its job %s after the platform had gone", time.Since(began).Round(100*time.Millisecond))

	d.Up()
	d.Until(60*time.Second, "the second attempt runs", func() (bool, string) {
		lines := linesOf(t, journal)
		return len(lines) > 0 && lines[len(lines)-1] == "2", look(&d.Client, id).Reason
	})
	// It is stopped with a job that does not heed TERM, and exits 0 all the same.
	deaf := submit(t, &d.Client, "--infrastructure-attempts", "0", "--", "sh", "-c", "trap '' TERM; echo deaf >"+dir+"/deaf; while [ ! -e "+string(g)+" ]; do sleep 0.1; done")
	d.Until(30*time.Second, "the job that heeds no TERM runs", func() (bool, string) { return len(linesOf(t, dir+"/deaf")) > 0, "" })
	reaches(t, &d.Client, deaf, 20*time.Second, "RUNNING")
	began = time.Now()
	stopped(t, d)
	t.Logf("hodei dev stopped within %s with a job that heeds no TERM", time.Since(began).Round(100*time.Millisecond))

	d.Up()
	g.open(t)
	if j := reaches(t, &d.Client, deaf, 60*time.Second, "FAILED"); j.Failure == nil || j.Failure.Category != "INFRASTRUCTURE" {
		t.Errorf("the job that must not start twice: %+v", j.Failure)
	}
	if j := reaches(t, &d.Client, id, 60*time.Second, "SUCCEEDED"); j.Attempt != 3 {
		t.Errorf("it ended as attempt %d", j.Attempt)
	}
	inOrder(t, journal)
	checked(t, d)
}
