package e2e

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// Each service is told to stop (SIGTERM) while jobs are queued, handed over and
// running; it exits 0 within its grace, and another takes up what it left: no job is
// lost, and none spends an attempt.
func TestEveryServiceStopsInOrderUnderLoad(t *testing.T) {
	t.Parallel()
	s := system.Start(t, system.Options{Workers: 4, JobsPerWorker: -1})
	dir := scratch(t)
	g := gate(filepath.Join(dir, "gate"))
	running := submit(t, &s.Client, "--", "sh", "-c", g.wait()+"; echo done")
	reaches(t, &s.Client, running, 30*time.Second, "RUNNING")
	var ids []string
	for i, name := range system.Services {
		for k := range 4 {
			ids = append(ids, submit(t, &s.Client, "--name", fmt.Sprintf("%d-%d", i, k), "--", "sleep", "0.1"))
		}
		began := time.Now()
		s.Stop(name)
		t.Logf("%s stopped within %s", name, time.Since(began).Round(10*time.Millisecond))
		s.StartService(name)
		s.WaitReady()
	}
	g.open(t)
	for _, id := range append(ids, running) {
		if j := reaches(t, &s.Client, id, 60*time.Second, "SUCCEEDED"); j.Attempt != 1 {
			t.Errorf("job %s was run as attempt %d", id, j.Attempt)
		}
	}
	atRest(t, &s.Client, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn()})
	s.StopAll()
}

// retire drains the workers that would wait for more jobs.
func retire(c *system.Client) {
	var workers []struct {
		ID string `json:"id"`
	}
	c.JSON(&workers, "worker", "list")
	for _, w := range workers {
		c.Hodei("worker", "drain", w.ID) // one that is going already refuses; atRest asks whether all went
	}
}
