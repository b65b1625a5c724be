package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hodei.dev/test/system"
)

// outputToTheByte follows a job that writes much, then little by little, then what is
// no text; by history, by tail and as it comes.
func outputToTheByte(t *testing.T, c *system.Client) {
	t.Helper()
	dir := scratch(t)
	first, second := gate(filepath.Join(dir, "first")), gate(filepath.Join(dir, "second"))
	id := submit(t, c, "--", "sh", "-c", "seq 10000; echo one error >&2; touch "+dir+"/history; "+first.wait()+
		"; i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo live $i; sleep 0.02; done; printf 'bin \\000\\377\\376\\r\\n'; "+
		second.wait()+"; echo two errors >&2; printf 'no newline'")
	var past, live strings.Builder
	for i := range 10000 {
		fmt.Fprintln(&past, i+1)
	}
	for i := range 30 {
		fmt.Fprintf(&live, "live %d\n", i+1)
	}
	live.WriteString("bin \x00\xff\xfe\r\n")
	rest := "no newline"

	c.Until(30*time.Second, "the history is stored", func() (bool, string) {
		out, errs, _ := c.Hodei("job", "logs", id)
		return out == past.String() && errs == "one error\n", fmt.Sprintf("%d bytes, %q", len(out), errs)
	})
	since := time.Now().UTC()
	whole := c.Start(nil, "hodei", "job", "logs", "-f", id)
	tailed := c.Start(nil, "hodei", "job", "logs", "-f", "--stream", "stdout", "--tail", "5", id)
	c.Until(20*time.Second, "both followers have begun", func() (bool, string) {
		return whole.Stdout.String() == past.String() && tailed.Stdout.String() == "9996\n9997\n9998\n9999\n10000\n", tailed.Stdout.String()
	})
	first.open(t)
	c.Until(20*time.Second, "what comes is shown", func() (bool, string) {
		return strings.HasSuffix(whole.Stdout.String(), live.String()), end(whole.Stdout.String())
	})
	middle := c.Start(nil, "hodei", "job", "logs", "-f", id) // begins among what comes
	second.open(t)
	all := past.String() + live.String() + rest
	for name, f := range map[string]*system.Running{"whole": whole, "in the middle": middle} {
		if code := f.Wait(t, 30*time.Second); code != 0 || f.Stdout.String() != all || f.Stderr.String() != "one error\ntwo errors\n" {
			t.Errorf("followed %s: exit %d, %d bytes of %d ending %q, stderr %q", name, code, len(f.Stdout.String()), len(all), end(f.Stdout.String()), f.Stderr.String())
		}
	}
	if code := tailed.Wait(t, 30*time.Second); code != 0 || tailed.Stdout.String() != "9996\n9997\n9998\n9999\n10000\n"+live.String()+rest {
		t.Errorf("followed from the tail: exit %d, %q", code, tailed.Stdout.String())
	}

	j := reaches(t, c, id, 20*time.Second, "SUCCEEDED")
	c.Until(30*time.Second, "its worker is gone", func() (bool, string) {
		var w struct {
			State string `json:"state"`
		}
		c.JSON(&w, "worker", "get", j.WorkerID)
		return w.State == "TERMINATED", w.State
	})
	if out, errs, code := c.Hodei("job", "logs", id); out != all || errs != "one error\ntwo errors\n" || code != 0 {
		t.Errorf("afterwards: exit %d, %d bytes of %d, stderr %q", code, len(out), len(all), errs)
	}
	if out, _, _ := c.Hodei("job", "logs", id, "--since", since.Format(time.RFC3339Nano), "--stream", "stdout"); out != live.String()+rest {
		t.Errorf("--since: %q", out)
	}
	if out, errs, _ := c.Hodei("job", "logs", id, "--stream", "stderr"); out != "" || errs != "one error\ntwo errors\n" {
		t.Errorf("--stream stderr: %q, %q", out, errs)
	}
	out, _, _ := c.Hodei("job", "logs", id, "--timestamps", "--stream", "stdout")
	var plain strings.Builder
	for line := range strings.Lines(out) {
		stamp, text, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Fatalf("--timestamps: %q: %v", line, err)
		}
		plain.WriteString(text)
	}
	if plain.String() != all {
		t.Errorf("--timestamps: without them it is %d bytes of %d", plain.Len(), len(all))
	}
}

func end(s string) string { return s[max(0, len(s)-200):] }

// issued is what `worker token -o json` says.
type issued struct {
	WorkerID     string `json:"worker_id"`
	Token        string `json:"token"`
	AgentAddress string `json:"agent_address"`
}

func externalWorker(t *testing.T, c *system.Client) {
	t.Helper()
	dir := scratch(t)
	if _, errs, code := c.Hodei("provider", "register", "lab", "--kind", "external", "--jobs-per-worker", "0"); code != 0 {
		t.Fatalf("register: exit %d: %s", code, errs)
	}
	start := func(name string, w issued, token string) *system.Running {
		file := filepath.Join(dir, name+".token")
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"--server", w.AgentAddress, "--worker", w.WorkerID, "--token-file", file, "--work-dir", filepath.Join(dir, name), "--log-format", "text"}
		if os.Geteuid() == 0 {
			args = append(args, "--run-as", "nobody")
		}
		return c.Start(nil, "hodei-agent", args...)
	}
	var w issued
	c.JSON(&w, "worker", "token", "--provider", "lab")
	agent := start("agent", w, w.Token)
	out, errs, code := c.Hodei("run", "--provider", "lab", "--", "sh", "-c", "echo on $HODEI_WORKER_ID; exit 4")
	if out != "on "+w.WorkerID+"\n" || code != 4 {
		t.Errorf("a job of the lab: %q, exit %d\n%s", out, code, errs)
	}

	if code := start("reused", w, w.Token).Wait(t, 30*time.Second); code != 1 {
		t.Errorf("an agent with a used token exits with %d", code)
	}
	var other issued
	c.JSON(&other, "worker", "token", "--provider", "lab")
	if code := start("forged", other, w.Token[:len(w.Token)-4]+"AAAA").Wait(t, 30*time.Second); code != 1 {
		t.Errorf("an agent with a forged token exits with %d", code)
	}
	c.Until(20*time.Second, "both refusals are recorded", func() (bool, string) {
		var events []eventView
		c.JSON(&events, "audit", "search", "--type", "WorkerRegistrationRejected")
		refusedOf := map[string]int{}
		for _, e := range events {
			refusedOf[e.Aggregate]++
			if strings.Contains(string(e.Data), w.Token) {
				t.Errorf("the event holds the token: %s", e.Data)
			}
		}
		return refusedOf["worker/"+w.WorkerID] == 1 && refusedOf["worker/"+other.WorkerID] == 1, fmt.Sprint(refusedOf)
	})

	if out, _, code := c.Hodei("run", "--provider", "lab", "--", "echo", "still here"); out != "still here\n" || code != 0 {
		t.Errorf("the refused ones disturbed the worker: %q, exit %d", out, code)
	}
	for _, id := range []string{w.WorkerID, other.WorkerID} {
		if _, errs, code := c.Hodei("worker", "terminate", id, "--reason", "the story ends"); code != 0 {
			t.Errorf("terminate: exit %d: %s", code, errs)
		}
	}
	if code := agent.Wait(t, 30*time.Second); code != 0 {
		t.Errorf("the agent of a terminated worker exits with %d\n%s", code, agent.Stderr.String())
	}
}
