//go:build linux

package session

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hodei.dev/agent/internal/logs"
	"hodei.dev/agent/internal/registrytest"
	"hodei.dev/agent/internal/run"
	"hodei.dev/libs/platform/proctree"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent is a session that runs, and the directory of its test.
type agent struct {
	*Session
	dir  string
	stop context.CancelCauseFunc
	done chan error
}

func config(t *testing.T, r *registrytest.Registry, dir string) Config {
	t.Helper()
	root, err := proctree.NewRoot(proctree.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	return Config{
		Client: r.Client(t), WorkerID: "w1", Version: "test", Token: "token", Runner: run.New(root, log), JobsDir: dir, Log: log,
		Logs: logs.Config{BackoffMin: time.Millisecond, BackoffMax: 50 * time.Millisecond},
	}
}

func begin(t *testing.T, r *registrytest.Registry, change ...func(*Session)) *agent {
	t.Helper()
	a := &agent{dir: t.TempDir(), done: make(chan error, 1)}
	var err error
	if a.Session, err = Register(t.Context(), config(t, r, a.dir)); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(a.Session)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	a.stop = stop
	go func() { a.done <- a.Run(ctx) }()
	t.Cleanup(func() { stop(errors.New("the test is over")) })
	return a
}

// gone expects that the session ends, and returns with what.
func (a *agent) gone(t *testing.T) error {
	t.Helper()
	select {
	case err := <-a.done:
		return err
	case <-time.After(registrytest.Patience):
		t.Fatal("the agent does not end")
		return nil
	}
}

// leave ends the agent in the usual way.
func (a *agent) leave(t *testing.T, s *registrytest.Stream) {
	t.Helper()
	s.Terminate(t, "done")
	if why := s.Stopping(t); !strings.HasPrefix(why, Goodbye) {
		t.Errorf("its last word is %q", why)
	}
	s.Closed(t)
	if err := a.gone(t); err != nil {
		t.Error(err)
	}
}

func sh(job string, attempt int32, script string) *registryv1.Run {
	return &registryv1.Run{JobId: job, Attempt: attempt, Namespace: "ns", Name: "n", Command: []string{"sh", "-c", script}, CorrelationId: "corr"}
}

// started brings an attempt to its start.
func started(t *testing.T, s *registrytest.Stream, r *registryv1.Run) {
	t.Helper()
	s.Run(t, r, "")
	s.Accepted(t, r.GetJobId(), r.GetAttempt())
	s.Start(t, r.GetJobId(), r.GetAttempt())
}

// awaitFile waits until the job has made a file, without polling faster than the
// job can write.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	end := time.Now().Add(registrytest.Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not appear", path)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// untilKilled is a script that says that it runs and then waits.
func untilKilled(file string) string { return "touch " + file + "; exec sleep 1000" }

func TestLifeOfAnAttempt(t *testing.T) {
	t.Setenv("SECRET_OF_THE_AGENT", "x")
	r := registrytest.New(t)
	a := begin(t, r)
	s, hello := r.Attach(t)
	if hello.GetJobId() != "" || hello.GetStarted() {
		t.Errorf("%v", hello)
	}
	job := sh("j1", 2, "env; cat; echo bad >&2; exit 3")
	job.Env, job.Stdin = map[string]string{"A": "b", "HODEI_WORKER_ID": "forged"}, []byte("fed\n")
	s.Run(t, job, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	s.Accepted(t, "j1", 2)
	s.Start(t, "j1", 2)
	res := s.Result(t, "j1", 2)
	if res.ExitCode == nil || res.GetExitCode() != 3 || res.GetCategory() != run.ExitCode || res.GetFailureMessage() == "" || res.GetLogDropped() != 0 ||
		res.GetStartedAt().AsTime().IsZero() || res.GetFinishedAt().AsTime().Before(res.GetStartedAt().AsTime()) || res.GetMaxRssBytes() == 0 {
		t.Errorf("%v", res)
	}
	out := r.Output("j1")
	if !out.EOF || out.Gaps != 0 || string(out.Stderr) != "bad\n" || res.GetLogBytes() != int64(len(out.Stdout)+len(out.Stderr)) {
		t.Errorf("the output is not whole before the result: %+v", out)
	}
	for _, want := range []string{
		"A=b", "HODEI_JOB_ID=j1", "HODEI_ATTEMPT=2", "HODEI_NAMESPACE=ns", "HODEI_JOB_NAME=n", "HODEI_WORKER_ID=w1", "HODEI_CORRELATION_ID=corr",
		"TRACEPARENT=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "fed",
	} {
		if !strings.Contains("\n"+string(out.Stdout), "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, out.Stdout)
		}
	}
	if strings.Contains(string(out.Stdout), "SECRET") {
		t.Error("the job sees the agent's environment")
	}

	s.Run(t, sh("j2", 1, "true"), "")
	if why := s.Refused(t, "j2", 1); !strings.Contains(why, "busy") {
		t.Errorf("taken before the ack: %s", why)
	}
	s.AckResult(t, "j1", 2)
	s.Run(t, job, "")
	if why := s.Refused(t, "j1", 2); !strings.Contains(why, "over") {
		t.Errorf("an attempt that has ended was taken again: %s", why)
	}
	started(t, s, sh("j2", 1, "true"))
	if res := s.Result(t, "j2", 1); res.GetCategory() != "" || res.ExitCode == nil {
		t.Errorf("%v", res)
	}
	s.AckResult(t, "j2", 1)
	a.leave(t, s)
}

// A stream may be cut at every point; nothing is lost, and nothing runs twice.
func TestCutAtEveryPoint(t *testing.T) {
	r := registrytest.New(t)
	a := begin(t, r)
	runs := filepath.Join(a.dir, "runs")
	fifo := filepath.Join(a.dir, "go")
	job := sh("j", 1, "echo run >> "+runs+"; while [ ! -e "+fifo+" ]; do sleep 0.01; done; echo out")
	last := int64(0)
	counted := func(h *registryv1.Hello) {
		t.Helper()
		if h.GetConnection() <= last {
			t.Errorf("connection %d after %d", h.GetConnection(), last)
		}
		last = h.GetConnection()
	}
	again := func(s *registrytest.Stream, started bool) *registrytest.Stream {
		t.Helper()
		s.Cut(errors.New("cut"))
		s, h := r.Attach(t)
		counted(h)
		if h.GetJobId() != "j" || h.GetAttempt() != 1 || h.GetStarted() != started {
			t.Errorf("%v", h)
		}
		return s
	}
	s := r.Next(t)
	s.Cut(errors.New("before hello"))
	s = r.Next(t)
	counted(s.Hello(t))
	s.Cut(nil) // before welcome
	s, h := r.Attach(t)
	counted(h)
	s.Cut(nil) // while it has nothing
	s, h = r.Attach(t)
	counted(h)
	if h.GetJobId() != "" {
		t.Errorf("%v", h)
	}
	s.Run(t, job, "")
	s.Accepted(t, "j", 1)
	s = again(s, false)
	s.Run(t, job, "")
	s.Accepted(t, "j", 1)
	s.Start(t, "j", 1)
	awaitFile(t, runs)
	s = again(s, true)
	s.Start(t, "j", 1)
	if err := os.WriteFile(fifo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	first := s.Result(t, "j", 1)
	s = again(s, true)
	second := s.Result(t, "j", 1)
	if first.String() != second.String() {
		t.Errorf("another result: %v, %v", first, second)
	}
	s.AckResult(t, "j", 1)
	s.AckResult(t, "j", 1)
	if n := strings.Count(read(t, runs), "run"); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	if out := r.Output("j"); string(out.Stdout) != "out\n" || !out.EOF || out.Gaps > 0 {
		t.Errorf("%+v", out)
	}
	a.leave(t, s)
}

func TestRepeatedAndReordered(t *testing.T) {
	r := registrytest.New(t)
	a := begin(t, r)
	s, _ := r.Attach(t)
	marker := filepath.Join(a.dir, "ran")

	t.Run("run and start repeated", func(t *testing.T) {
		job := sh("twice", 1, "echo run >> "+marker)
		s.Run(t, job, "")
		s.Run(t, job, "")
		s.Accepted(t, "twice", 1)
		s.Accepted(t, "twice", 1)
		s.Start(t, "twice", 1)
		s.Start(t, "twice", 1)
		s.Result(t, "twice", 1)
		s.Start(t, "twice", 1)
		s.AckResult(t, "twice", 1)
		s.Start(t, "twice", 1)
		if got := read(t, marker); got != "run\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("cancel before run", func(t *testing.T) {
		s.Cancel(t, "early", 1, "changed my mind")
		s.Run(t, sh("early", 1, "touch "+marker+"2"), "")
		s.Accepted(t, "early", 1)
		res := s.Result(t, "early", 1)
		if res.GetCategory() != cancelled || res.ExitCode != nil || !strings.Contains(res.GetFailureMessage(), "changed my mind") {
			t.Errorf("%v", res)
		}
		s.Start(t, "early", 1)
		s.AckResult(t, "early", 1)
		if _, err := os.Stat(marker + "2"); err == nil {
			t.Error("it ran")
		}
		if !r.Output("early").EOF {
			t.Error("its log never ends")
		}
	})
	t.Run("cancel before start", func(t *testing.T) {
		s.Run(t, sh("waiting", 1, "true"), "")
		s.Accepted(t, "waiting", 1)
		s.Cancel(t, "waiting", 1, "")
		if res := s.Result(t, "waiting", 1); res.GetCategory() != cancelled {
			t.Errorf("%v", res)
		}
		s.AckResult(t, "waiting", 1)
	})
	t.Run("drop before run", func(t *testing.T) {
		s.Drop(t, "unwanted", 1)
		s.Run(t, sh("unwanted", 1, "true"), "")
		s.Refused(t, "unwanted", 1)
	})
	t.Run("drop before start", func(t *testing.T) {
		s.Run(t, sh("late", 1, "true"), "")
		s.Accepted(t, "late", 1)
		s.Drop(t, "late", 1)
		s.Start(t, "late", 1)
	})
	t.Run("drop while it runs, and the next at once", func(t *testing.T) {
		running := filepath.Join(a.dir, "running")
		started(t, s, sh("stale", 1, "trap '' TERM; "+untilKilled(running)))
		awaitFile(t, running)
		s.Drop(t, "stale", 1)
		started(t, s, sh("next", 1, "true"))
		s.Result(t, "next", 1)
		s.AckResult(t, "next", 1)
	})
	t.Run("senseless", func(t *testing.T) {
		s.Run(t, &registryv1.Run{JobId: "x", Attempt: 1}, "")
		s.Refused(t, "x", 1)
		s.Run(t, sh("x", 0, "true"), "")
		s.Refused(t, "x", 0)
	})
	t.Run("start of what is not there", func(t *testing.T) {
		s.Start(t, "ghost", 1)
		var h *registryv1.Hello
		if s, h = r.Attach(t); h.GetJobId() != "" {
			t.Errorf("%v", h)
		}
	})
	a.leave(t, s)
}

func TestCancelWhileItRuns(t *testing.T) {
	r := registrytest.New(t)
	r.Grace = "200ms"
	a := begin(t, r)
	s, _ := r.Attach(t)
	for _, c := range []struct {
		name, script, category string
		exit                   int32
	}{
		{"obeys", "trap 'echo bye; exit 7' TERM; touch %; while :; do sleep 0.01; done", cancelled, 7},
		{"ignores", "trap '' TERM; touch %; while :; do sleep 0.01; done", cancelled, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			running := filepath.Join(a.dir, c.name)
			started(t, s, sh(c.name, 1, strings.ReplaceAll(c.script, "%", running)))
			awaitFile(t, running)
			s.Cancel(t, c.name, 1, "enough")
			s.Cancel(t, c.name, 1, "again")
			res := s.Result(t, c.name, 1)
			if res.GetCategory() != c.category || res.GetExitCode() != c.exit || !strings.Contains(res.GetFailureMessage(), "enough") {
				t.Errorf("%v", res)
			}
			s.AckResult(t, c.name, 1)
		})
	}
	a.leave(t, s)
}

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	for i := range int32(1000) {
		m.put(key{"j", i}, fate{})
	}
	if len(m.fates) != remembered || len(m.order) != remembered {
		t.Errorf("%d, %d", len(m.fates), len(m.order))
	}
	if _, ok := m.get(key{"j", 999}); !ok {
		t.Error("the latest is forgotten")
	}
	m.put(key{"j", 999}, fate{over: true})
	m.put(key{"j", 999}, fate{})
	if f, _ := m.get(key{"j", 999}); !f.over {
		t.Error("what is over came back")
	}
}
