package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// asMain makes the test binary the program itself.
const asMain = "HODEI_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		os.Exit(Main())
	}
	goleak.VerifyTestMain(m)
}

func (w *world) queued() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.jobs) > 0
}

// began starts `hodei run` and gives the job its first attempt.
func (s *server) began(args ...string) *running {
	r := s.begin("", append([]string{"run"}, args...)...)
	r.until("queueing", s.w.queued)
	s.w.set(func(j *schedulerv1.Job) { j.State, j.Attempt = "RUNNING", 1 })
	return r
}

func exited(code int32) func(j *schedulerv1.Job) {
	return func(j *schedulerv1.Job) {
		j.ExitCode = &code
		if code != 0 {
			j.Failure = &schedulerv1.Failure{Category: "EXIT_CODE", Message: "exit code", Advice: "read the output"}
		}
	}
}

func failed(category string, signal int32) func(j *schedulerv1.Job) {
	return func(j *schedulerv1.Job) {
		j.Signal, j.Failure = signal, &schedulerv1.Failure{Category: category, Message: "it went wrong", Advice: "do something"}
	}
}

func TestRunEndsAsTheJobDid(t *testing.T) {
	for name, tc := range map[string]struct {
		state string
		end   func(j *schedulerv1.Job)
		code  int
	}{
		"success":             {"SUCCEEDED", exited(0), 0},
		"exit code":           {"FAILED", exited(3), 3},
		"signal":              {"FAILED", failed("SIGNAL", 9), 137},
		"out of memory":       {"FAILED", failed("OUT_OF_MEMORY", 9), 137},
		"time-out":            {"TIMEOUT", failed("TIMEOUT", 15), 124},
		"cancelled":           {"CANCELLED", failed("CANCELLED", 15), 130},
		"worker lost":         {"FAILED", failed("WORKER_LOST", 9), 125},
		"provisioning failed": {"FAILED", failed("PROVISIONING_FAILED", 0), 125},
		"no reason":           {"FAILED", func(*schedulerv1.Job) {}, 125},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, newWorld())
			r := s.began("--", "sh", "-c", "true")
			s.w.print(1, "stdout", "hello\n")
			s.w.print(1, "stderr", "oh\n")
			s.w.print(1, "stdout", "no \xff end")
			s.w.eof(1)
			s.w.end(tc.state, tc.end)
			got := r.wait()
			got.want(t, tc.code, "hello\nno \xff end")
			contains(t, got.stderr, "oh\n")
			if tc.code != 0 {
				contains(t, got.stderr, "hodei: job "+s.w.jobs[0].GetId()+" "+tc.state)
			}
		})
	}
}

func TestRunOfAJobThatNeverRan(t *testing.T) {
	s := serve(t, newWorld())
	r := s.begin("", "run", "true")
	r.until("queueing", s.w.queued)
	s.w.set(func(j *schedulerv1.Job) {
		j.Deferred, j.Reason, j.Advice = []string{"a: full"}, "waits in the queue: a: full", "make room"
	})
	r.until("the reason", func() bool { return strings.Contains(r.stderr.String(), "a: full\nwhat to do: make room") })
	s.w.end("TIMEOUT", failed("QUEUE_TIMEOUT", 0))
	r.wait().want(t, 124, "")
}

func TestRunSendsWhatItIsTold(t *testing.T) {
	w := newWorld()
	s := serve(t, w)
	file := t.TempDir() + "/env"
	if err := os.WriteFile(file, []byte("# comment\n\nA=file\nB=x=y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := s.begin("input", "run", "--detach", "-o", "json", "--correlation-id", "c-1", "--name", "n", "--namespace", "ns", "--env", "A=1", "--env-file", file,
		"--cwd", "/tmp", "--label", "l=1", "--annotation", "a=2", "--priority", "7", "--timeout", "1m30s", "--queue-timeout", "1h", "--max-attempts", "3",
		"--infrastructure-attempts", "0", "--retry-on", "exit-code,TIMEOUT", "--retry-on", "signal", "--backoff-initial", "5s", "--backoff-factor", "1.5",
		"--backoff-max", "2m", "--backoff-jitter", "0", "--cpu", "500m", "--memory", "256Mi", "--provider", "p",
		"--prefer-provider", "q", "--require-label", "zone=a", "--require-label", "os=linux", "--description", "d e", "--tag", "t", "--tag", "u", "-i", "echo", "--name", "-o", "text").wait()
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	var j map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &j); err != nil {
		t.Fatal(err)
	}
	if j["correlation_id"] != "c-1" || j["state"] != "PENDING" || j["exit_code"] != nil || !strings.HasPrefix(j["queued_by"].(string), "user/") {
		t.Errorf("%v", j)
	}
	spec := w.specs[0]
	want := `{"name":"n","namespace":"ns","command":["echo","--name","-o","text"],"env":{"A":"1","B":"x=y"},"cwd":"/tmp","stdin":"aW5wdXQ=",` +
		`"labels":{"l":"1"},"annotations":{"a":"2"},"priority":7,"timeout":"1m30s","queue_timeout":"1h","resources":{"cpu_millis":"500","memory_bytes":"268435456"},` +
		`"retry":{"max_attempts":3,"infrastructure_attempts":0,"on":["EXIT_CODE","TIMEOUT","SIGNAL"],"backoff":{"initial":"5s","factor":1.5,"max":"2m","jitter":0}},"placement":{"provider":"p","preferred_provider":"q","required_labels":{"zone":"a","os":"linux"}},"description":"d e","tags":["t","u"],"id":"` + spec.GetId() + `"}`
	wanted, err := parseSpec([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	if spec.String() != wanted.String() {
		t.Errorf("got  %v\nwant %v", spec, wanted)
	}
	if len(spec.GetId()) != 36 || spec.GetId()[14] != '7' {
		t.Errorf("id %q", spec.GetId())
	}
}

func TestRunJSON(t *testing.T) {
	s := serve(t, newWorld())
	r := s.began("-o", "json", "true")
	s.w.print(1, "stderr", "oh\n")
	s.w.eof(1)
	s.w.end("SUCCEEDED", exited(0))
	lines := strings.Split(strings.TrimSpace(r.wait().stdout), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines: %v", len(lines), lines)
	}
	contains(t, lines[0], `{"attempt":1,"stream":"stderr","seq":1,"time":"2026-05-01T12:00:00.005Z","data":"b2gK","dropped":0,"eof":false}`)
	contains(t, lines[2], `"state":"SUCCEEDED","attempt":1,"exit_code":0,`)
}

func TestRunPrintsEveryAttempt(t *testing.T) {
	s := serve(t, newWorld())
	s.w.onQueue = func(w *world, spec *schedulerv1.JobSpec) error {
		// Two attempts are over before anybody can ask.
		w.chunk(1, &registryv1.LogChunk{Stream: "stdout", Data: []byte("one\n")})
		w.chunk(2, &registryv1.LogChunk{Stream: "stdout", Data: []byte("two\n")})
		w.chunk(2, &registryv1.LogChunk{Stream: "stdout", Eof: true, Dropped: 12})
		w.chunk(3, &registryv1.LogChunk{Stream: "stdout", Data: []byte("three\n")})
		w.jobs = append(w.jobs, &schedulerv1.Job{Id: spec.GetId(), State: "RUNNING", Attempt: 3, Version: 9})
		return nil
	}
	r := s.begin("", "run", "true")
	r.until("the third attempt", func() bool { return strings.Contains(r.stdout.String(), "three") })
	s.w.end("PENDING", func(j *schedulerv1.Job) { j.Reason = "worker w was lost" })
	s.w.eof(3)
	s.w.set(func(j *schedulerv1.Job) { j.State, j.Attempt = "RUNNING", 4 })
	s.w.print(4, "stdout", "four\n")
	s.w.eof(4)
	s.w.end("SUCCEEDED", exited(0))
	got := r.wait()
	got.want(t, 0, "one\ntwo\nthree\nfour\n")
	contains(t, got.stderr, "12 bytes of the job's stdout were cut here")
}

func TestRunOutlivesServers(t *testing.T) {
	s := serve(t, newWorld())
	r := s.began("true")
	s.w.print(1, "stdout", "a\n")
	r.until("the first line", func() bool { return r.stdout.String() == "a\n" })
	s.stop()
	s.w.print(1, "stdout", "b\n")
	s.start()
	r.until("the second line", func() bool { return r.stdout.String() == "a\nb\n" })
	s.stop()
	s.w.print(1, "stdout", "c\n")
	s.w.eof(1)
	s.w.end("FAILED", exited(4))
	s.start()
	r.wait().want(t, 4, "a\nb\nc\n")
}

func TestRunBearsBadStreams(t *testing.T) {
	for name, spoil := range map[string]func(w *world){
		"each breaks after a chunk": func(w *world) {
			var n atomic.Int64
			w.onChunk = func(int32, int64) error {
				if n.Add(1)%2 == 0 {
					return fault.New(fault.Unavailable, "going away")
				}
				return nil
			}
		},
		"each begins anew": func(w *world) {
			var n atomic.Int64
			w.deaf = true
			w.onChunk = func(int32, int64) error {
				if m := n.Add(1); m == 3 || m == 7 {
					return fault.New(fault.Unavailable, "going away")
				}
				return nil
			}
		},
		"watches break": func(w *world) { w.watchBreak = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, newWorld())
			spoil(s.w)
			r := s.began("true")
			for _, line := range []string{"a", "b", "c", "d", "e"} {
				s.w.print(1, "stdout", line)
			}
			s.w.eof(1)
			s.w.end("SUCCEEDED", exited(0))
			r.wait().want(t, 0, "abcde")
		})
	}
}

func TestRunGivesUpOnAServerThatStaysAway(t *testing.T) {
	s := serve(t, newWorld())
	r := &running{t: t, signals: make(chan os.Signal, 1), code: make(chan int, 1)}
	p := Process{Args: []string{"run", "true"}, Environ: []string{"HODEI_SERVER=" + s.addr}, Stdout: &r.stdout, Stderr: &r.stderr, firstContact: 200e6, reconnect: 300e6}
	go func() { r.code <- Execute(t.Context(), p) }()
	r.until("queueing", s.w.queued)
	s.w.set(func(j *schedulerv1.Job) { j.State, j.Attempt = "RUNNING", 1 })
	s.w.print(1, "stdout", "a")
	r.until("output", func() bool { return r.stdout.String() == "a" })
	s.stop()
	got := r.wait()
	got.want(t, 3, "a")
	contains(t, got.stderr, "cannot reach the server", "hodei job logs -f "+s.w.jobs[0].GetId())
}

func TestALostAnswerQueuesNothingTwice(t *testing.T) {
	s := serve(t, newWorld())
	lost := false
	s.w.onQueue = func(w *world, spec *schedulerv1.JobSpec) error {
		if lost {
			return nil
		}
		lost = true
		w.jobs = append(w.jobs, &schedulerv1.Job{Id: spec.GetId(), State: "PENDING"})
		return fault.New(fault.Unavailable, "the answer is lost")
	}
	got := s.run("submit", "true")
	if got.want(t, 0, s.w.jobs[0].GetId()+"\n"); len(s.w.jobs) != 1 || strings.Contains(got.stderr, "before") {
		t.Errorf("%d jobs, stderr %q", len(s.w.jobs), got.stderr)
	}
}

func TestInterrupt(t *testing.T) {
	s := serve(t, newWorld())
	s.w.onCancel = func(w *world) {
		w.print(1, "stdout", "bye\n")
		w.eof(1)
		w.end("CANCELLED", failed("CANCELLED", 15))
	}
	r := s.began("true")
	r.signals <- os.Interrupt
	got := r.wait()
	got.want(t, 130, "bye\n")
	contains(t, got.stderr, "cancelling job")
}

func TestSecondInterruptLeaves(t *testing.T) {
	s := serve(t, newWorld())
	var asked atomic.Bool
	s.w.onCancel = func(*world) { asked.Store(true) }
	r := s.began("true")
	r.signals <- syscall.SIGTERM
	r.until("the cancel", asked.Load)
	r.signals <- os.Interrupt
	got := r.wait()
	got.want(t, 130, "")
	contains(t, got.stderr, "left job "+s.w.jobs[0].GetId())
}

func TestInterruptWhileQueueing(t *testing.T) {
	s := serve(t, newWorld())
	queueing, interrupted := make(chan struct{}), make(chan struct{})
	s.w.onQueue = func(*world, *schedulerv1.JobSpec) error {
		close(queueing)
		<-interrupted
		return nil
	}
	s.w.onCancel = func(w *world) { w.end("CANCELLED", failed("CANCELLED", 0)) }
	r := s.begin("", "run", "true")
	<-queueing
	r.signals <- os.Interrupt
	r.until("taking the signal", func() bool { return len(r.signals) == 0 })
	close(interrupted)
	got := r.wait()
	got.want(t, 130, "")
	contains(t, got.stderr, "cancelling job "+s.w.jobs[0].GetId())
}

// The same with a real process and real signals.
func TestInterruptOfAProcess(t *testing.T) {
	s := serve(t, newWorld())
	var asked atomic.Bool
	s.w.onCancel = func(*world) { asked.Store(true) }
	r := &running{t: t}
	cmd := exec.Command(os.Args[0], "run", "--", "sleep", "9")
	cmd.Env = append(os.Environ(), asMain+"=1", "HODEI_SERVER="+s.addr)
	cmd.Stdout, cmd.Stderr = &r.stdout, &r.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.until("queueing", s.w.queued)
	s.w.set(func(j *schedulerv1.Job) { j.State, j.Attempt = "RUNNING", 1 })
	s.w.print(1, "stdout", "up\n")
	r.until("output", func() bool { return r.stdout.String() == "up\n" })
	interrupt := func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
	}
	interrupt()
	interrupt() // at once it is the same wish
	r.until("the cancel", asked.Load)
	r.until("leaving the job", func() bool {
		interrupt()
		return strings.Contains(r.stderr.String(), "left job")
	})
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("%v: %s", err, r.stderr.String())
	}
	contains(t, r.stderr.String(), "left job "+s.w.jobs[0].GetId())
}
