package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hodei.dev/test/system"
)

func refused(t *testing.T, c *system.Client) {
	t.Helper()
	big := strings.Repeat("x", 100<<10)
	for name, story := range map[string]struct {
		args  []string
		stdin string
		code  int
		want  string
	}{
		"no command":            {[]string{"run", "--name", "refused"}, "", 2, "command"},
		"an empty command":      {[]string{"run", "--name", "refused", "--", ""}, "", 1, "command"},
		"an empty interpreter":  {[]string{"run", "--name", "refused", "--script", "-"}, "true", 2, "--interpreter"},
		"a negative timeout":    {[]string{"run", "--name", "refused", "--timeout", "-1s", "--", "true"}, "", 1, "timeout: -1s"},
		"a queue timeout":       {[]string{"run", "--name", "refused", "--queue-timeout", "soon", "--", "true"}, "", 2, "--queue-timeout"},
		"a large command":       {[]string{"run", "--name", "refused", "--", "echo", big, big, big}, "", 1, "spec"},
		"a large input":         {[]string{"run", "--name", "refused", "-i", "--", "cat"}, big + big + big, 1, "--stdin"},
		"a namespace":           {[]string{"run", "--name", "refused", "--namespace", "No_Label", "--", "true"}, "", 1, "namespace"},
		"an unknown provider":   {[]string{"run", "--name", "refused", "--provider", "nowhere", "--", "true"}, "", 1, "provider"},
		"an id":                 {[]string{"run", "--name", "refused", "--id", "seven", "--", "true"}, "", 1, "id"},
		"an environment":        {[]string{"run", "--name", "refused", "--env", "HODEI_SERVER=x", "--", "true"}, "", 1, "env.HODEI_SERVER"},
		"a name of a variable":  {[]string{"run", "--name", "refused", "--env", "1=x", "--", "true"}, "", 1, "env"},
		"a priority":            {[]string{"run", "--name", "refused", "--priority", "5000", "--", "true"}, "", 1, "priority"},
		"a directory":           {[]string{"run", "--name", "refused", "--cwd", "here", "--", "true"}, "", 1, "cwd"},
		"a number of attempts":  {[]string{"run", "--name", "refused", "--max-attempts", "0", "--", "true"}, "", 2, "--max-attempts"},
		"memory":                {[]string{"run", "--name", "refused", "--memory", "lots", "--", "true"}, "", 2, "--memory"},
		"an unknown flag":       {[]string{"run", "--name", "refused", "--gpu", "1", "--", "true"}, "", 2, "--gpu"},
		"a broken line":         {[]string{"submit", "--file", "-"}, "{\"name\":\"refused\",\n", 1, "line 1"},
		"an unknown field":      {[]string{"submit", "--file", "-"}, "{\"name\":\"refused\",\"comand\":[\"true\"]}\n", 1, "comand"},
		"a field of wrong type": {[]string{"submit", "--file", "-"}, "{\"name\":\"refused\",\"command\":\"true\"}\n", 1, "command"},
	} {
		out, errs, code := c.HodeiIn(story.stdin, story.args...)
		if code != story.code || !strings.Contains(errs, story.want) || out != "" {
			t.Errorf("%s: exit %d, want %d and %q named: %q %q", name, code, story.code, story.want, out, errs)
		}
	}
	if jobs := named(c, "refused"); len(jobs) > 0 {
		t.Errorf("queued all the same: %+v", jobs)
	}
	// Only a worker can tell whether it has an interpreter.
	if _, errs, code := c.HodeiIn("true", "run", "--script", "-", "--interpreter", "no-such-interpreter"); code == 0 || !strings.Contains(errs, "no-such-interpreter") {
		t.Errorf("an unknown interpreter: exit %d: %s", code, errs)
	}
	for _, args := range [][]string{{"job", "get", "01234567-0000-7000-8000-000000000000"}, {"job", "logs", "ffffffff"}, {"worker", "get", "ffffffff"}, {"provider", "get", "nowhere"}} {
		if out, errs, code := c.Hodei(args...); code != 4 || out != "" {
			t.Errorf("%v: exit %d: %q %q", args, code, out, errs)
		}
	}
	if _, errs, code := c.Hodei("--server", "unix://"+filepath.Join(scratch(t), "nobody.sock"), "job", "list"); code != 3 || !strings.Contains(errs, "what to do") {
		t.Errorf("no server: exit %d: %s", code, errs)
	}
}

func queuedOnce(t *testing.T, c *system.Client) {
	t.Helper()
	const id = "5f0e2b9c-6f5c-4a1e-9d53-0d6a8c1b7e11"
	if got := submit(t, c, "--name", "once-only", "--id", id, "--", "true"); got != id {
		t.Errorf("its id is %s", got)
	}
	if got := submit(t, c, "--name", "once-only", "--id", id, "--", "true"); got != id {
		t.Errorf("the same again: %s", got)
	}
	_, errs, code := c.Hodei("submit", "--name", "once-only", "--id", id, "--", "false")
	if code != 1 || !strings.Contains(errs, "command") {
		t.Errorf("the same id with another command: exit %d: %s", code, errs)
	}
	first := submit(t, c, "--name", "once-only", "--idempotency-key", "the key", "--", "true")
	if again := submit(t, c, "--name", "once-only", "--idempotency-key", "the key", "--", "true"); again != first {
		t.Errorf("the same key: %s and %s", first, again)
	}
	_, errs, code = c.Hodei("submit", "--name", "once-only", "--idempotency-key", "the key", "--priority", "7", "--", "true")
	if code != 1 || !strings.Contains(errs, "priority") {
		t.Errorf("the same key with another priority: exit %d: %s", code, errs)
	}
	for _, one := range []string{id, first} {
		reaches(t, c, one, 60*time.Second, "SUCCEEDED")
	}
	if jobs := named(c, "once-only"); len(jobs) != 2 {
		t.Errorf("%d jobs", len(jobs))
	}
}

func brokenLines(t *testing.T, c *system.Client) {
	t.Helper()
	out, errs, code := c.HodeiIn("{\"name\":\"whole\",\"command\":[\"true\"]}\nbroken\n{\"name\":\"whole\",\"command\":[\"true\"],\"timeout\":\"-3s\"}\n\n{\"name\":\"whole\",\"command\":[\"true\"]}\n", "submit", "--file", "-")
	ids := strings.Fields(out)
	if code != 1 || len(ids) != 2 || !strings.Contains(errs, "line 2") || !strings.Contains(errs, "line 3") || !strings.Contains(errs, "timeout") {
		t.Errorf("exit %d: %q %s", code, out, errs)
	}
	for _, id := range ids {
		reaches(t, c, id, 60*time.Second, "SUCCEEDED")
	}
	if jobs := named(c, "whole"); len(jobs) != 2 {
		t.Errorf("%d jobs", len(jobs))
	}
}

func loopbackOnly(t *testing.T, c *system.Client) {
	t.Helper()
	dev := c.Start(nil, "hodei", "dev", "--data-dir", scratch(t), "--listen", "0.0.0.0:17433")
	if code := dev.Wait(t, 20*time.Second); code != 2 || !strings.Contains(dev.Stderr.String(), "listen") || !strings.Contains(dev.Stderr.String(), "--insecure") {
		t.Errorf("hodei dev: exit %d: %s", code, dev.Stderr.String())
	}
	gateway := c.Start([]string{"HODEI_LISTEN=0.0.0.0:17433"}, "hodei-gateway")
	if code := gateway.Wait(t, 20*time.Second); code == 0 || !strings.Contains(gateway.Stderr.String(), "listen") {
		t.Errorf("hodei-gateway: exit %d: %s", code, gateway.Stderr.String())
	}
}
