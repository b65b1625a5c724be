package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hodei.dev/test/system"
)

// Jobs of a platform that runs as root run as somebody who can read nothing of it.
func TestJobsAreKeptApart(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("jobs run as the platform's own user: only root can give them another")
	}
	d := system.NewDev(t, "data", "--workers", "2")
	const secret = "a-secret-of-the-platform-4711"
	d.Env = []string{"PLATFORM_SECRET=" + secret}
	d.Up()

	dir := scratch(t)
	g := gate(filepath.Join(dir, "gate"))
	other := submit(t, &d.Client, "--", "sh", "-c", "echo mine >secret; pwd >"+dir+"/where; "+g.wait())
	d.Until(30*time.Second, "another job runs", func() (bool, string) { return len(linesOf(t, dir+"/where")) > 0, "" })
	reaches(t, &d.Client, other, 10*time.Second, "RUNNING")
	agent := agentOf(t, &d.Client, other)

	var files strings.Builder
	err := filepath.WalkDir(d.DataDir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != d.DataDir && filepath.Base(path) != "workers" && filepath.Base(path) != "provisioner" {
			fmt.Fprintln(&files, path)
		}
		return nil // what is gone meanwhile cannot be read
	})
	if err != nil || files.Len() == 0 {
		t.Fatal(err)
	}
	probe := `while read f; do if cat "$f" >/dev/null 2>&1 || ls "$f/." >/dev/null 2>&1 || touch "$f/x" 2>/dev/null || [ -w "$f" ]; then echo "$f"; fi; done
for f in /proc/$PPID/environ /proc/$PPID/fd/3 /proc/$PPID/mem ` + fmt.Sprintf("/proc/%[1]d/environ /proc/%[1]d/fd/3 /proc/%[2]d/environ", agent, d.Running().PID()) + `; do cat $f >/dev/null 2>&1 && echo "$f"; done
grep -ls 'PLATFORM_SECRE[T]' /proc/[0-9]*/environ
ls /proc/$PPID/fd >/dev/null 2>&1 && echo "the agent's descriptors"
for s in /tmp/hodei-pg-*/. /tmp/hodei-[0-9]*/.; do [ -d $s ] && ls $s >/dev/null 2>&1 && echo "$s"; done
kill -0 $PPID 2>/dev/null && echo "signals to the agent"
echo end`
	out, errs, code := d.HodeiIn(files.String(), "run", "-i", "--", "sh", "-c", probe)
	if out != "end\n" || code != 0 {
		t.Errorf("a job reaches (exit %d)\n%s%s", code, out, errs)
	}

	out, _, _ = d.Hodei("run", "--", "sh", "-c", "id -un 2>/dev/null || id -u; id -G; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status")
	if lines := strings.Split(out, "\n"); lines[0] == "root" || lines[0] == "postgres" || strings.Contains(" "+lines[1]+" ", " 0 ") || !strings.Contains(out, "CapEff:\t0000000000000000") {
		t.Errorf("a job is %s", out)
	}
	t.Logf("a job is %s", strings.Join(strings.Fields(out), " "))
	out, _, _ = d.Hodei("run", "--env", "MINE=1", "--", "env")
	allowed := regexp.MustCompile(`^(HODEI_(JOB_ID|JOB_NAME|ATTEMPT|NAMESPACE|WORKER_ID|CORRELATION_ID|TREE)|TRACEPARENT|TRACESTATE|PATH|HOME|USER|LOGNAME|SHELL|LANG|TMPDIR|PWD|MINE)=`)
	for line := range strings.Lines(out) {
		if !allowed.MatchString(line) || strings.Contains(line, secret) {
			t.Errorf("in a job's environment: %s", line)
		}
	}
	var events json.RawMessage
	d.JSON(&events, "audit", "search", "--limit", "0")
	if strings.Contains(string(events), secret) {
		t.Error("the events hold the platform's secret")
	}
	g.open(t)
	reaches(t, &d.Client, other, 30*time.Second, "SUCCEEDED")
	checked(t, d)
}
