//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hodei.dev/agent/internal/registrytest"
	"hodei.dev/libs/platform/bootstrap"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// roleEnv makes the test binary the real one.
const roleEnv = "HODEI_AGENT_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) != "" {
		main()
	}
	os.Exit(m.Run())
}

// agentProcess is an agent in a process of its own.
type agentProcess struct {
	cmd    *exec.Cmd
	stderr buffer
	exit   chan int
}

type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(t *testing.T, files []*os.File, env []string, args ...string) *agentProcess {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &agentProcess{cmd: exec.Command(exe, args...), exit: make(chan int, 1)}
	p.cmd.Env = append(append(os.Environ(), roleEnv+"=1"), env...)
	p.cmd.ExtraFiles, p.cmd.Stderr = files, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code says it
		p.exit <- p.cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // usually it has ended
		if t.Failed() {
			t.Log(p.stderr.String())
		}
	})
	return p
}

func (p *agentProcess) exits(t *testing.T, want int) {
	t.Helper()
	select {
	case code := <-p.exit:
		if code != want {
			t.Errorf("exit code %d, want %d\n%s", code, want, p.stderr.String())
		}
	case <-time.After(registrytest.Patience):
		t.Fatal("it does not end")
	}
}

// external are the arguments of an agent that an operator starts.
func external(t *testing.T, r *registrytest.Registry) []string {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--server", r.Addr(), "--worker", "w1", "--token-file", token, "--work-dir", workDir(t)}
}

// workDir is one that every user may pass.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hodei-agent-test-") //nolint:usetesting // t.TempDir is below a directory that only its owner may enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start of a job that leaves a daemon behind it and says its pid.
const withDaemon = `(setsid sh -c 'echo $$ > "$P"; exec sleep 1000' &); while [ ! -s "$P" ]; do sleep 0.01; done; trap '' TERM; echo ready; exec sleep 1000`

func run(t *testing.T, s *registrytest.Stream, job, script string, env map[string]string) {
	t.Helper()
	s.Run(t, &registryv1.Run{JobId: job, Attempt: 1, Command: []string{"sh", "-c", script}, Env: env, CorrelationId: "corr-7"}, "")
	s.Accepted(t, job, 1)
	s.Start(t, job, 1)
}

// await waits for a condition that another process brings about.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(registrytest.Patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("it never happens: " + what)
		}
	}
}

func TestSignalEndsItInOrder(t *testing.T) {
	r := registrytest.New(t)
	r.Grace = "200ms"
	r.OnRegister = func(req *registryv1.RegisterRequest) error {
		if req.GetToken() != "s3cret" || req.GetWorkerId() != "w1" {
			return status.Error(codes.PermissionDenied, "wrong")
		}
		return nil
	}
	p := start(t, nil, nil, external(t, r)...)
	s, _ := r.Attach(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	run(t, s, "j", withDaemon, map[string]string{"P": pidFile})
	await(t, "output", func() bool { return len(r.Output("j").Stdout) > 0 })
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if why := s.Stopping(t); !strings.Contains(why, "told to stop") {
		t.Errorf("%q", why)
	}
	if res := s.Result(t, "j", 1); res.GetCategory() != "INFRASTRUCTURE" || !strings.Contains(res.GetFailureMessage(), "told to stop") {
		t.Errorf("%v", res)
	}
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("the result came while the job's daemon lives")
	}
	s.AckResult(t, "j", 1)
	if why := s.Stopping(t); !strings.HasPrefix(why, "goodbye: ") {
		t.Errorf("%q", why)
	}
	s.Closed(t)
	p.exits(t, 0)
	log := p.stderr.String()
	if strings.Contains(log, "s3cret") || strings.Contains(log, registrytest.Secret) {
		t.Error("a secret is in the log")
	}
	for _, want := range []string{`"worker_id":"w1"`, `"job_id":"j"`, `"correlation_id":"corr-7"`} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in the log", want)
		}
	}
}

func TestBootstrapIsReadOnce(t *testing.T) {
	r := registrytest.New(t)
	rd, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	b := bootstrap.Bootstrap{WorkerID: "w9", Token: "s3cret", AgentAddress: r.Addr(), WorkDir: workDir(t)}
	if os.Geteuid() == 0 {
		b.RunAs = &bootstrap.User{UID: 65534, GID: 65534}
	}
	if err := bootstrap.Write(wr, b); err != nil {
		t.Fatal(err)
	}
	wr.Close()
	p := start(t, []*os.File{rd}, []string{"HODEI_SERVER=127.0.0.1:1", "HODEI_WORKER=another"}, "--bootstrap-fd", "3")
	s, _ := r.Attach(t)
	run(t, s, "j", `id -u; pwd; ls /proc/self/fd | tr '\n' ' '; cat /proc/$PPID/cmdline /proc/$PPID/environ 2>/dev/null | tr '\0' ' '; env`, nil)
	res := s.Result(t, "j", 1)
	out := string(r.Output("j").Stdout)
	if res.GetCategory() != "" || strings.Contains(out, "s3cret") || !strings.Contains(out, filepath.Join(b.WorkDir, "jobs", "j-1")) ||
		!strings.Contains(out, "HODEI_WORKER_ID=w9") || strings.Contains(out, "HODEI_SERVER") && b.RunAs != nil {
		t.Errorf("%v\n%s", res, out)
	}
	if b.RunAs != nil && !strings.HasPrefix(out, "65534\n") {
		t.Errorf("it runs as another user:\n%s", out)
	}
	s.AckResult(t, "j", 1)
	s.Terminate(t, "done")
	s.Stopping(t)
	s.Closed(t)
	p.exits(t, 0)
	if left, _ := filepath.Glob(filepath.Join(b.WorkDir, "jobs", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// What an agent left that was killed with -9 is ended by the next one of the
// directory, and two at a time are refused.
func TestNextAgentOfADirectory(t *testing.T) {
	r := registrytest.New(t)
	args := external(t, r)
	first := start(t, nil, nil, args...)
	s, _ := r.Attach(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	run(t, s, "j", withDaemon, map[string]string{"P": pidFile})
	await(t, "output", func() bool { return len(r.Output("j").Stdout) > 0 })

	second := start(t, nil, nil, args...)
	second.exits(t, 2)
	if !strings.Contains(second.stderr.String(), "in use by another agent") {
		t.Error(second.stderr.String())
	}
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.exits(t, -1)
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	third := start(t, nil, nil, args...)
	s, h := r.Attach(t)
	if h.GetJobId() != "" {
		t.Errorf("%v", h)
	}
	if stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(raw)) + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
		t.Errorf("the daemon lives: %s", stat)
	}
	if err := third.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for m := s.Receive(t); m != nil; m = s.Receive(t) {
		if m.GetStopping() == nil {
			t.Errorf("%v", m)
		}
	}
	s.Cut(nil)
	third.exits(t, 0)
}

func TestRefusedRegistration(t *testing.T) {
	r := registrytest.New(t)
	r.OnRegister = func(*registryv1.RegisterRequest) error {
		return status.Error(codes.PermissionDenied, "the registration is refused")
	}
	p := start(t, nil, nil, external(t, r)...)
	p.exits(t, 1)
	if !strings.Contains(p.stderr.String(), "the registration is refused") {
		t.Error(p.stderr.String())
	}
}

func TestStoppedWhileNobodyAnswers(t *testing.T) {
	r := registrytest.New(t)
	asked := make(chan struct{}, 100)
	r.OnRegister = func(*registryv1.RegisterRequest) error {
		asked <- struct{}{}
		return status.Error(codes.Unavailable, "away")
	}
	p := start(t, nil, nil, external(t, r)...)
	<-asked
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.exits(t, 0)
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	good := filepath.Join(dir, "good")
	for path, text := range map[string]string{empty: "", good: "token"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	given := []string{"--server", "127.0.0.1:1", "--worker", "w", "--token-file", good}
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		code int
		says string
	}{
		"help":                 {args: []string{"--help"}, says: "--bootstrap-fd"},
		"help has an example":  {args: []string{"--help"}, says: "hodei-agent --server"},
		"version":              {args: []string{"version"}, says: "hodei-agent "},
		"nothing":              {code: 2, says: "--server, --worker, --token-file must be given"},
		"environment":          {env: map[string]string{"HODEI_SERVER": "a:1", "HODEI_WORKER": "w"}, code: 2, says: "--token-file must be given"},
		"unknown flag":         {args: []string{"--token", "x"}, code: 2, says: "unknown flag"},
		"argument":             {args: []string{"now"}, code: 2, says: "unknown"},
		"no token file":        {args: []string{"--server", "a:1", "--worker", "w", "--token-file", filepath.Join(dir, "none")}, code: 2, says: "reading the token"},
		"empty token":          {args: []string{"--server", "a:1", "--worker", "w", "--token-file", empty}, code: 2, says: "is empty"},
		"unknown user":         {args: append([]string{"--run-as", "no-such-user"}, given...), code: 2, says: "is not known"},
		"bad log level":        {args: append([]string{"--log-level", "loud", "--work-dir", dir}, given...), code: 2, says: "loud"},
		"bad bootstrap":        {args: []string{"--bootstrap-fd", "1"}, code: 2, says: "3 or higher"},
		"bootstrap not open":   {args: []string{"--bootstrap-fd", "999"}, code: 2, says: "bootstrap"},
		"bootstrap and server": {args: []string{"--bootstrap-fd", "3", "--server", "a:1"}, code: 2, says: "either"},
		"work dir is a file":   {args: append([]string{"--work-dir", good}, given...), code: 2, says: "work directory"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := execute(context.Background(), c.args, func(k string) string { return c.env[k] }, &out, &out)
			if code != c.code || !strings.Contains(out.String(), c.says) {
				t.Errorf("exit code %d:\n%s", code, &out)
			}
		})
	}
}

func TestLookUp(t *testing.T) {
	u, err := lookUp("root")
	if err != nil || u.UID != 0 || u.Name != "root" {
		t.Errorf("%+v, %v", u, err)
	}
	u, err = lookUp("54321:54322")
	if err != nil || u.UID != 54321 || u.GID != 54322 {
		t.Errorf("%+v, %v", u, err)
	}
	for _, bad := range []string{"54321", "a:b", "-1:1", fmt.Sprint(1<<32) + ":1"} {
		if u, err := lookUp(bad); err == nil {
			t.Errorf("%q is %+v", bad, u)
		}
	}
}
