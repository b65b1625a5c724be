package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// A Postgres is restored from a backup under eight running services and three kinds of
// jobs: one that the backup has as ended, one that it has as running and that ended
// since, and one that it does not know and that runs. The doctor says what is wrong, an
// operator goes on, and nothing of what was lost is left over.
func TestAPostgresRestoredFromABackup(t *testing.T) {
	s := system.Start(t, system.Options{Workers: 4})
	token := fmt.Sprintf("hodei_restored_%d", os.Getpid())
	submit := func(script string) string {
		t.Helper()
		out, errs, code := s.Hodei("submit", "--infrastructure-attempts", "5", "--", "sh", "-c", script)
		if code != 0 {
			t.Fatalf("submit: %s", errs)
		}
		return strings.TrimSpace(out)
	}
	reaches := func(id, state string) {
		t.Helper()
		s.Until(90*time.Second, id+" is "+state, func() (bool, string) {
			j := get(s, id)
			return j.State == state, fmt.Sprintf("%+v", j)
		})
	}
	ended := submit("true")
	reaches(ended, "SUCCEEDED")
	gate := s.Dir + "/gate"
	if err := os.Mkdir(gate, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(gate, 0o777); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	running := submit("while [ ! -e " + gate + "/open ]; do sleep 0.1; done")
	reaches(running, "RUNNING")
	well(t, s)

	restore := eventingtest.Backup(t, s.PostgresURL)
	unknown := submit("sh -c '" + token + "=1; while :; do sleep 1; done'; true")
	reaches(unknown, "RUNNING")
	if err := os.WriteFile(gate+"/open", nil, 0o644); err != nil { //nolint:gosec // for the jobs' user
		t.Fatal(err)
	}
	reaches(running, "SUCCEEDED")
	restore()

	s.Until(60*time.Second, "the doctor finds it", func() (bool, string) {
		out, errs, code := s.Hodei("doctor", "--quick")
		return code == 1 && strings.Contains(out, "--new-epoch"), out + errs
	})
	plan, errs, code := s.Hodei("doctor", "--new-epoch", "--dry-run")
	if code != 0 || !strings.Contains(plan, "job/"+unknown) {
		t.Errorf("the plan does not name what is given up (exit %d): %s%s", code, plan, errs)
	}
	if _, errs, code := s.Hodei("doctor", "--new-epoch", "--yes"); code != 0 {
		t.Fatalf("new epoch: %s", errs)
	}

	// What the log does not know ends; what it has as running comes to an end again.
	s.Until(3*time.Minute, "the process of the lost job is gone", func() (bool, string) {
		left := processes(t, token)
		return len(left) == 0, fmt.Sprint(left)
	})
	reaches(running, "SUCCEEDED")
	if j := get(s, ended); j.State != "SUCCEEDED" || j.Attempt != 1 {
		t.Errorf("what had ended is %+v", j)
	}
	if _, _, code := s.Hodei("job", "get", unknown); code != 4 {
		t.Errorf("the lost job is still known: exit %d", code)
	}
	reaches(submit("true"), "SUCCEEDED")
	s.Until(90*time.Second, "no worker is left", func() (bool, string) {
		out, errs, _ := s.Hodei("worker", "list", "-o", "json")
		return strings.TrimSpace(out) == "[]", out + errs
	})
	well(t, s)
	check.Assert(t, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn(), AtRest: true})
}

// well fails the test unless the doctor comes to find nothing.
func well(t *testing.T, s *system.System) {
	t.Helper()
	s.Until(60*time.Second, "all is well", func() (bool, string) {
		out, errs, code := s.Hodei("doctor")
		return code == 0, out + errs
	})
}
