//go:build linux

package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hodei.dev/libs/platform/proctree"
)

// roleEnv makes the test binary play an agent that is killed.
const roleEnv = "RUN_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleEnv) == "" {
		os.Exit(m.Run())
	}
	root, err := proctree.NewRoot(proctree.Config{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	New(root, slog.New(slog.DiscardHandler)).Start(Spec{
		JobID: "orphan", Command: []string{"sh", "-c", "echo $$; exec sleep 1000"}, WorkDir: os.Getenv("WORK"),
		Limits: proctree.Limits{MemoryBytes: 64 << 20},
	}, printer{})
	select {}
}

type printer struct{}

func (printer) Write(c Chunk) error {
	_, err := os.Stdout.Write(c.Data)
	return err
}

// memory is a sink that keeps everything and checks the sequence.
type memory struct {
	mu      sync.Mutex
	out     map[string]*bytes.Buffer
	chunks  []Chunk
	problem error
	arrived chan struct{} // one token for each chunk, as long as there is room
}

func newMemory() *memory {
	return &memory{out: map[string]*bytes.Buffer{Stdout: {}, Stderr: {}}, arrived: make(chan struct{}, 1000)}
}

func (m *memory) Write(c Chunk) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.Seq != int64(len(m.chunks)+1) || len(c.Data) > MaxChunk || c.Time.IsZero() || len(c.Data) == 0 && c.Dropped == 0 {
		m.problem = fmt.Errorf("chunk %d: seq %d, %d bytes, dropped %d, at %v", len(m.chunks)+1, c.Seq, len(c.Data), c.Dropped, c.Time)
	}
	m.chunks = append(m.chunks, c)
	m.out[c.Stream].Write(c.Data)
	select {
	case m.arrived <- struct{}{}:
	default:
	}
	return nil
}

func (m *memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out[Stdout].String()
}

func newRunner(tb testing.TB, mode proctree.Mode) *Runner {
	tb.Helper()
	root, err := proctree.NewRoot(proctree.Config{Mode: mode})
	if err != nil {
		tb.Skip(err)
	}
	tb.Cleanup(root.Close)
	return New(root, slog.New(slog.NewTextHandler(tb.Output(), nil)))
}

// attempt runs a spec and checks what holds for every end.
func attempt(t *testing.T, r *Runner, spec Spec) (Result, *memory) {
	t.Helper()
	if spec.JobID == "" {
		spec.JobID = t.Name()
	}
	if spec.WorkDir == "" {
		spec.WorkDir = workDir(t)
	}
	m := newMemory()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res := r.Run(ctx, spec, m)
	if ctx.Err() != nil {
		t.Fatalf("it hung: %+v", res)
	}
	if m.problem != nil {
		t.Error(m.problem)
	}
	if _, err := os.Stat(spec.WorkDir); err == nil {
		t.Error("the work directory is still there")
	}
	if res.FinishedAt.Before(res.StartedAt) || res.StartedAt.IsZero() {
		t.Errorf("started %v, finished %v", res.StartedAt, res.FinishedAt)
	}
	if res.Category != "" && (res.Code == "" || res.Message == "") {
		t.Errorf("a failure without words: %+v", res)
	}
	return res, m
}

// workDir names a directory that any user may reach.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "run-test-") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "w")
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestHowJobsEnd(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := newRunner(t, proctree.Auto)
	for _, c := range []struct {
		name     string
		spec     Spec
		exit     int
		signal   int
		category string
		code     string
		stdout   string
	}{
		{"success", Spec{Command: []string{"echo", "hello"}}, 0, 0, "", "", "hello\n"},
		{"exit code", Spec{Command: sh("exit 3")}, 3, 0, ExitCode, "EXIT_3", ""},
		{"exit code 255", Spec{Command: sh("exit 255")}, 255, 0, ExitCode, "EXIT_255", ""},
		{"signal", Spec{Command: sh("kill -SEGV $$")}, NoExitCode, 11, Signal, "KILLED_BY_SIGNAL", ""},
		{"killed", Spec{Command: sh("kill -9 $$")}, NoExitCode, 9, Signal, "KILLED_BY_SIGNAL", ""},
		{"not found", Spec{Command: []string{"no-such-program"}}, 127, 0, CommandNotFound, "COMMAND_NOT_FOUND", ""},
		{"path not found", Spec{Command: []string{"/no/such/program"}}, 127, 0, CommandNotFound, "COMMAND_NOT_FOUND", ""},
		{"not executable", Spec{Command: []string{file("plain", "x", 0o644)}}, 126, 0, PermissionDenied, "PERMISSION_DENIED", ""},
		{"directory", Spec{Command: []string{dir}}, 126, 0, PermissionDenied, "PERMISSION_DENIED", ""},
		{"no loader", Spec{Command: []string{file("lost", "#!/no/such/interpreter\n", 0o755)}}, 127, 0, CommandNotFound, "COMMAND_NOT_FOUND", ""},
		{"no program", Spec{Command: []string{file("noise", "\x01\x02\x03", 0o755)}}, 126, 0, PermissionDenied, "NOT_EXECUTABLE", ""},
		{"empty", Spec{}, NoExitCode, 0, Validation, "COMMAND_EMPTY", ""},
		{"zero byte", Spec{Command: []string{"echo", "a\x00b"}}, NoExitCode, 0, Validation, "COMMAND_INVALID", ""},
		{"bad variable", Spec{Command: []string{"true"}, Env: map[string]string{"A=B": "c"}}, NoExitCode, 0, Validation, "ENV_INVALID", ""},
		{"huge argument", Spec{Command: []string{"true", strings.Repeat("x", 1<<20)}}, NoExitCode, 0, Validation, "COMMAND_TOO_LONG", ""},
		{"bad limit", Spec{Command: []string{"true"}, Limits: proctree.Limits{MemoryBytes: 1}}, NoExitCode, 0, Validation, "LIMIT_INVALID", ""},
		{"no work directory", Spec{Command: []string{"true"}, WorkDir: "/no/such/parent/w"}, NoExitCode, 0, Infrastructure, "WORK_DIR_FAILED", ""},
		{"cwd", Spec{Command: []string{"pwd"}, Cwd: "/usr"}, 0, 0, "", "", "/usr\n"},
		{"cwd missing", Spec{Command: []string{"pwd"}, Cwd: "/no/such"}, NoExitCode, 0, Validation, "CWD_NOT_FOUND", ""},
		{"cwd a file", Spec{Command: []string{"pwd"}, Cwd: "/etc/passwd"}, NoExitCode, 0, Validation, "CWD_NOT_A_DIRECTORY", ""},
		{"own PATH", Spec{Command: []string{"plain2"}, Env: map[string]string{"PATH": filepath.Dir(file("plain2", "#!/bin/sh\necho mine\n", 0o755))}}, 0, 0, "", "", "mine\n"},
		{"no stdin", Spec{Command: []string{"cat"}}, 0, 0, "", "", ""},
		{"empty stdin", Spec{Command: []string{"cat"}, Stdin: []byte{}}, 0, 0, "", "", ""},
		{"stdin", Spec{Command: []string{"wc", "-c"}, Stdin: make([]byte, 300_000)}, 0, 0, "", "", "300000\n"},
		{"unread stdin", Spec{Command: []string{"true"}, Stdin: make([]byte, 300_000)}, 0, 0, "", "", ""},
		{"script", Spec{Script: &Script{Content: []byte("echo $1 $2")}, Command: []string{"a", "b"}}, 0, 0, "", "", "a b\n"},
		{"script with #!", Spec{Script: &Script{Content: []byte("#!/usr/bin/env -S sh -e\nfalse\necho no")}}, 1, 0, ExitCode, "EXIT_1", ""},
		{"script with interpreter", Spec{Script: &Script{Interpreter: "sh -e", Content: []byte("echo one; false; echo two")}}, 1, 0, ExitCode, "EXIT_1", "one\n"},
		{"unknown interpreter", Spec{Script: &Script{Interpreter: "no-such-interpreter", Content: []byte("x")}}, 127, 0, CommandNotFound, "COMMAND_NOT_FOUND", ""},
		{"umask", Spec{Command: sh("umask")}, 0, 0, "", "", "0022\n"},
		{"own session", Spec{Command: sh(`set -- $(cat /proc/$$/stat); [ $5 = $$ ] && [ $6 = $$ ] && echo leader`)}, 0, 0, "", "", "leader\n"},
		{"no core file", Spec{Command: sh("sleep 0.1; ulimit -S -c")}, 0, 0, "", "", "0\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, m := attempt(t, r, c.spec)
			if res.ExitCode != c.exit || res.Signal != c.signal || res.Category != c.category || res.Code != c.code {
				t.Errorf("exit %d signal %d category %q code %q (%s)", res.ExitCode, res.Signal, res.Category, res.Code, res.Message)
			}
			if m.String() != c.stdout {
				t.Errorf("stdout %q, want %q", m, c.stdout)
			}
			if res.TimedOut || res.Cancelled || res.OOMKilled || res.Dropped != 0 {
				t.Errorf("%+v", res)
			}
		})
	}
}

func TestEnvironmentStartsFromNothing(t *testing.T) {
	t.Setenv("AGENT_SECRET", "x")
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, leak.Fd(), syscall.F_SETFD, 0); errno != 0 { // as if inherited
		t.Fatal(errno)
	}
	spec := Spec{
		JobID: "j1", Attempt: 2, Namespace: "ns", Command: sh("env; echo --; ls /proc/$$/fd"),
		Env: map[string]string{"A": "b", "LANG": "C", "HODEI_JOB_ID": "forged"}, WorkDir: workDir(t),
	}
	_, m := attempt(t, newRunner(t, proctree.Auto), spec)
	env, fds, _ := strings.Cut(m.String(), "--\n")
	got := strings.Split(strings.TrimSpace(env), "\n")
	slices.Sort(got)
	want := []string{
		"A=b", "HODEI_ATTEMPT=2", "HODEI_JOB_ID=j1", "HODEI_NAMESPACE=ns", "HOME=" + spec.WorkDir, "LANG=C", "PATH=" + basePath,
		"PWD=" + spec.WorkDir, "SHELL=/bin/sh", "TMPDIR=" + spec.WorkDir,
	}
	got = slices.DeleteFunc(got, func(kv string) bool { return strings.HasPrefix(kv, proctree.MarkerEnv+"=") })
	if !slices.Equal(got, want) {
		t.Errorf("environment\n%q, want\n%q", got, want)
	}
	if f := strings.Fields(fds); !slices.Equal(f[:3], []string{"0", "1", "2"}) || len(f) > 3 {
		t.Errorf("descriptors %q", f)
	}
}

func TestRunAs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can change user")
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	nobody := &Credential{UID: 65534, GID: 65534, Name: "nobody"}
	r := newRunner(t, proctree.Auto)
	res, m := attempt(t, r, Spec{RunAs: nobody, Script: &Script{Content: []byte(`
		id -u; id -G; echo $USER; touch file && mktemp >/dev/null && echo writable
		cat ` + secret + ` 2>/dev/null || echo secret denied
		cat /proc/` + strconv.Itoa(os.Getpid()) + `/environ >/dev/null 2>&1 || echo environ denied`)}})
	if want := "65534\n65534\nnobody\nwritable\nsecret denied\nenviron denied\n"; m.String() != want || !res.Succeeded() {
		t.Errorf("%q, %+v", m, res)
	}
	t.Run("work directory out of reach", func(t *testing.T) {
		parent := workDir(t)
		if err := os.Mkdir(parent, 0o700); err != nil {
			t.Fatal(err)
		}
		res, _ := attempt(t, r, Spec{RunAs: nobody, Command: []string{"true"}, WorkDir: parent + "/w"})
		if res.Code != "WORK_DIR_DENIED" || res.Category != Infrastructure {
			t.Errorf("%+v", res)
		}
	})
	t.Run("working directory out of reach", func(t *testing.T) {
		res, _ := attempt(t, r, Spec{RunAs: nobody, Command: []string{"true"}, Cwd: "/root"})
		if res.Code != "CWD_DENIED" || res.Category != PermissionDenied {
			t.Errorf("%+v", res)
		}
	})
}

func TestTimeout(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	const ms = time.Millisecond
	for _, c := range []struct {
		name         string
		script       string
		grace        time.Duration
		exit, signal int
		stdout       string
	}{
		{"dies of TERM", "echo go; exec sleep 1000", 0, NoExitCode, 15, "go\n"},
		{"answers TERM", "trap 'echo bye; exit 7' TERM; echo go; while :; do sleep 0.01; done", 0, 7, 0, "go\nbye\n"},
		{"answers with success", "trap 'exit 0' TERM; echo go; while :; do sleep 0.01; done", 0, 0, 0, "go\n"},
		{"ignores TERM", "trap '' TERM; echo go; while :; do sleep 0.01; done", 100 * ms, NoExitCode, 9, "go\n"},
		{"is stopped", "echo go; kill -STOP $$; exec sleep 1000", 0, NoExitCode, 15, "go\n"},
		{"its child cleans up", "sh -c 'trap \"sleep 0.1; echo clean; exit\" TERM; echo go; while :; do sleep 0.01; done' & sleep 1000", 0, NoExitCode, 15, "go\nclean\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, m := attempt(t, r, Spec{Command: sh(c.script), Timeout: 200 * ms, KillGrace: c.grace})
			if res.Category != Timeout || !res.TimedOut || res.Cancelled || res.ExitCode != c.exit || res.Signal != c.signal {
				t.Errorf("%+v", res)
			}
			if m.String() != c.stdout {
				t.Errorf("stdout %q, want %q", m, c.stdout)
			}
			if took := res.FinishedAt.Sub(res.StartedAt); took < 200*ms || took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestCancelAndKill(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	for _, c := range []struct {
		name   string
		end    func(*Process)
		signal int
	}{
		{"cancel", func(p *Process) { p.Cancel("by ann") }, 15},
		{"cancel twice", func(p *Process) { p.Cancel("by ann"); p.Cancel("by bob") }, 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory()
			p := r.Start(Spec{JobID: "c", Command: sh("echo go; exec sleep 1000")}, m)
			<-m.arrived
			c.end(p)
			if res := p.Result(); res.Category != Cancelled || !res.Cancelled || res.Signal != c.signal || !strings.Contains(res.Message, "by ann") {
				t.Errorf("%+v", res)
			}
		})
	}
	t.Run("kill a cancelled job that ignores TERM", func(t *testing.T) {
		m := newMemory()
		p := r.Start(Spec{JobID: "k", Command: sh("trap 'echo no' TERM; echo go; while :; do sleep 0.01; done"), KillGrace: time.Hour}, m)
		<-m.arrived
		p.Cancel("first")
		<-m.arrived
		p.Kill("second")
		if res := p.Result(); res.Category != Cancelled || res.Signal != 9 || !strings.Contains(res.Message, "first") {
			t.Errorf("%+v", res)
		}
	})
	t.Run("kill", func(t *testing.T) {
		m := newMemory()
		p := r.Start(Spec{JobID: "k", Command: sh("trap '' TERM; echo go; while :; do sleep 0.01; done"), KillGrace: time.Hour}, m)
		<-m.arrived
		p.Kill("lease lost")
		if res := p.Result(); res.Category != Cancelled || res.Signal != 9 {
			t.Errorf("%+v", res)
		}
	})
	t.Run("after the end", func(t *testing.T) {
		p := r.Start(Spec{JobID: "e", Command: sh("exit 4")}, newMemory())
		<-p.Done()
		p.Cancel("late")
		p.Kill("later")
		if res := p.Result(); res.Category != ExitCode || res.ExitCode != 4 || res.Cancelled {
			t.Errorf("%+v", res)
		}
	})
}

// A cancel that races the end yields one story or the other, never a mixture.
func TestCancelRacingTheEnd(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	seen := map[string]int{}
	for i := range 60 {
		p := r.Start(Spec{JobID: "race", Attempt: i, Command: []string{"true"}}, newMemory())
		delay := time.NewTimer(time.Duration(i) * 50 * time.Microsecond)
		<-delay.C
		p.Cancel("race")
		res := p.Result()
		switch {
		case res.Category == "" && res.ExitCode == 0 && !res.Cancelled:
		case res.Category == Cancelled && res.Cancelled && res.Started:
		default:
			t.Fatalf("%+v", res)
		}
		seen[res.Category]++
	}
	t.Log(seen)
}

func TestOutput(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	t.Run("ten megabytes", func(t *testing.T) {
		res, m := attempt(t, r, Spec{Command: sh("head -c 10485760 /dev/zero")})
		if n := m.out[Stdout].Len(); n != 10<<20 || !res.Succeeded() || res.Dropped != 0 {
			t.Errorf("%d bytes, %+v", n, res)
		}
		if n := len(m.chunks); n > 2000 {
			t.Errorf("%d chunks", n)
		}
	})
	t.Run("any bytes, streams apart", func(t *testing.T) {
		_, m := attempt(t, r, Spec{Command: sh(`printf '\377\000\n\200'; printf 'e\001' >&2`)})
		if m.String() != "\xff\x00\n\x80" || m.out[Stderr].String() != "e\x01" {
			t.Errorf("%q, %q", m, m.out[Stderr])
		}
	})
	t.Run("small writes are collected", func(t *testing.T) {
		_, m := attempt(t, r, Spec{Command: sh(`i=0; while [ $i -lt 5000 ]; do echo $i; i=$((i+1)); done`)})
		if lines := strings.Count(m.String(), "\n"); lines != 5000 || len(m.chunks) > 200 {
			t.Errorf("%d lines in %d chunks", lines, len(m.chunks))
		}
	})
	t.Run("the first bytes do not wait", func(t *testing.T) {
		m := newMemory()
		p := r.Start(Spec{JobID: "f", Command: sh("echo one; exec sleep 1000")}, m)
		select {
		case <-m.arrived:
		case <-time.After(5 * time.Second):
			t.Error("nothing arrived while the job runs")
		}
		p.Kill("")
		<-p.Done()
	})
}

// slow is a sink that takes nothing until it is told to.
type slow struct {
	*memory
	open chan struct{}
}

func (s slow) Write(c Chunk) error {
	<-s.open
	return s.memory.Write(c)
}

func TestSlowSinkSlowsTheJob(t *testing.T) {
	s := slow{newMemory(), make(chan struct{})}
	marker := filepath.Join(t.TempDir(), "done")
	p := newRunner(t, proctree.Auto).Start(Spec{JobID: "slow", Command: sh("head -c 3000000 /dev/zero; touch " + marker)}, s)
	select {
	case <-p.Done():
		t.Fatal("it ended although nobody took its output")
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("three megabytes were buffered somewhere")
	}
	close(s.open)
	if res := p.Result(); !res.Succeeded() || s.out[Stdout].Len() != 3_000_000 {
		t.Errorf("%d bytes, %+v", s.out[Stdout].Len(), res)
	}
}

type refusing struct{}

func (refusing) Write(Chunk) error { return errors.New("no") }

func TestSinkThatRefuses(t *testing.T) {
	p := newRunner(t, proctree.Auto).Start(Spec{JobID: "r", Command: sh("head -c 1000000 /dev/zero")}, refusing{})
	if res := p.Result(); !res.Succeeded() || res.Dropped != 1_000_000 {
		t.Errorf("%+v", res)
	}
}

func TestOutputLimit(t *testing.T) {
	m := newMemory()
	o := newOutput(m, 1000)
	for range 10 {
		o.deliver(Stdout, make([]byte, 150))
	}
	o.deliver(Stderr, make([]byte, 20))
	if lost := o.finish(); lost != 520 || m.out[Stdout].Len() != 1000 {
		t.Errorf("lost %d, kept %d", lost, m.out[Stdout].Len())
	}
	end := m.chunks[len(m.chunks)-2:]
	if end[0].Dropped != 500 || end[0].Stream != Stdout || end[1].Dropped != 20 || end[1].Stream != Stderr || m.problem != nil {
		t.Errorf("%+v, %v", end, m.problem)
	}
}

func TestNothingIsLeft(t *testing.T) {
	for _, mode := range []proctree.Mode{proctree.Cgroup2, proctree.Cgroup1, proctree.Groups} {
		t.Run(string(mode), func(t *testing.T) {
			r := newRunner(t, mode)
			pidfile := filepath.Join(t.TempDir(), "pid")
			start := time.Now()
			// The daemon keeps the pipes open, in a session of its own, without a parent.
			res, m := attempt(t, r, Spec{Command: sh(`(setsid sh -c 'echo $$ >` + pidfile + `; exec sleep 1000' &); while [ ! -s ` + pidfile + ` ]; do sleep 0.01; done; echo main`)})
			if !res.Succeeded() || m.String() != "main\n" {
				t.Errorf("%q %+v", m, res)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("the daemon delayed the result by %v", took)
			}
			raw, err := os.ReadFile(pidfile)
			if err != nil {
				t.Fatal(err)
			}
			if stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(raw)) + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
				t.Errorf("the daemon still runs: %s", stat)
			}
		})
	}
}

// Without cgroups a descendant can hide; it must not hold up the result.
func TestEscapedDescendantDelaysNobody(t *testing.T) {
	pidfile := filepath.Join(t.TempDir(), "pid")
	r := newRunner(t, proctree.Groups)
	res, _ := attempt(t, r, Spec{Command: sh(`(setsid env -i sh -c 'echo $$ >` + pidfile + `; exec sleep 1000' &); while [ ! -s ` + pidfile + ` ]; do sleep 0.01; done`)})
	raw, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if !res.Succeeded() || res.FinishedAt.Sub(res.StartedAt) > 5*time.Second {
		t.Errorf("%+v", res)
	}
}

func TestOutOfMemory(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	res, _ := attempt(t, r, Spec{
		Command: sh(`x=$(head -c 200000000 /dev/zero | tr '\0' 'x'); echo ${#x}`),
		Limits:  proctree.Limits{MemoryBytes: 32 << 20},
	})
	if !r.Capabilities().Memory {
		if res.Enforced.Memory {
			t.Error("a limit that nobody enforces")
		}
		t.Skip("no memory limits here")
	}
	if res.Category != OutOfMemory || !res.OOMKilled || !res.Enforced.Memory || !strings.Contains(res.Message, "32 MiB") {
		t.Errorf("%+v", res)
	}
	if res.Usage.MaxRSSBytes < 16<<20 || res.Usage.CPUUser+res.Usage.CPUSystem == 0 {
		t.Errorf("usage %+v", res.Usage)
	}
}

func TestJobDiesWithItsAgent(t *testing.T) {
	root, err := proctree.NewRoot(proctree.Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	worker, err := root.Open("worker")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=agent", "WORK="+workDir(t))
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = w
	if err := worker.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := worker.Wait(ctx); err != nil {
		t.Errorf("the job outlives its agent: %v", err)
	}
	if err := errors.Join(worker.Kill(ctx), worker.Remove()); err != nil {
		t.Error(err)
	}
	for _, hierarchy := range []string{"unified", "memory"} {
		if left, _ := filepath.Glob("/sys/fs/cgroup/" + hierarchy + "/hodei-*job-orphan-0"); len(left) > 0 {
			t.Errorf("cgroups left: %v", left)
		}
	}
}

func TestParallelJobs(t *testing.T) {
	r := newRunner(t, proctree.Auto)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			m := newMemory()
			res := r.Run(context.Background(), Spec{JobID: "p", Attempt: i, Command: []string{"echo", strconv.Itoa(i)}}, m)
			if !res.Succeeded() || m.String() != strconv.Itoa(i)+"\n" {
				t.Errorf("%d: %q %+v", i, m, res)
			}
		})
	}
	wg.Wait()
}

func BenchmarkTrue(b *testing.B) {
	for _, c := range []struct {
		name   string
		mode   proctree.Mode
		limits proctree.Limits
	}{
		{"cgroup2", proctree.Cgroup2, proctree.Limits{}},
		{"cgroup2 with limits", proctree.Cgroup2, proctree.Limits{MemoryBytes: 1 << 30, CPUMillis: 1000}},
		{"cgroup1", proctree.Cgroup1, proctree.Limits{}},
		{"groups", proctree.Groups, proctree.Limits{}},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRunner(b, c.mode)
			for b.Loop() {
				if res := r.Run(b.Context(), Spec{JobID: "bench", Command: []string{"true"}, Limits: c.limits}, newMemory()); !res.Succeeded() {
					b.Fatal(res)
				}
			}
		})
	}
	b.Run("fork and exec alone", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
