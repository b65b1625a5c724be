package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// TestWhoDispatchesIsKilledTogether: dispatcher, registry and provisioner are killed
// at once, again and again, while jobs are handed over. Hand-overs fail, are
// overtaken, and are made again; the queue always goes on, and every job ends well.
func TestWhoDispatchesIsKilledTogether(t *testing.T) {
	s := system.Start(t, system.Options{Workers: 8, JobsPerWorker: -1})
	const jobs, rounds = 240, 6
	var lines strings.Builder
	for i := range jobs {
		b, err := json.Marshal(map[string]any{
			"name": fmt.Sprintf("short-%d", i), "command": []string{"sh", "-c", fmt.Sprintf("sleep 0.%d", 1+i%4)},
			"retry": map[string]int{"max_attempts": 1, "infrastructure_attempts": 3 * rounds},
		})
		if err != nil {
			t.Fatal(err)
		}
		lines.Write(append(b, '\n'))
	}
	out, errs, code := s.HodeiIn(lines.String(), "submit", "--file", "-")
	if code != 0 || len(strings.Fields(out)) != jobs {
		t.Fatalf("submit: exit %d\n%s", code, errs)
	}
	together := []string{"dispatcher", "registry", "provisioner"}
	for round := range rounds {
		ended := len(jobsIn(s, "SUCCEEDED"))
		for _, name := range together {
			s.Kill(name)
		}
		for i := range together { // who is back first differs
			s.StartService(together[(round+i)%len(together)])
		}
		s.Until(60*time.Second, "jobs end again", func() (bool, string) {
			now := len(jobsIn(s, "SUCCEEDED"))
			return now > ended || now == jobs, fmt.Sprintf("round %d: %d of %d have ended", round, now, jobs)
		})
	}
	s.Until(2*time.Minute, "every job has ended", func() (bool, string) {
		left := jobsIn(s, "PENDING", "SCHEDULED", "ASSIGNED", "RUNNING")
		return len(left) == 0, fmt.Sprintf("%d left, such as %+v", len(left), append(left, jobView{})[0])
	})
	if n := len(jobsIn(s, "SUCCEEDED")); n != jobs {
		t.Errorf("%d of %d jobs succeeded: %+v", n, jobs, jobsIn(s, "FAILED", "CANCELLED", "TIMEOUT"))
	}
	s.WaitReady()
	check.Assert(t, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn()})
}
