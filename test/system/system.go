// Package system runs the whole platform as its users do: the eight binaries of
// bin/ as separate processes, against one Postgres and one NATS server of their
// own, so that tests can kill and restart each of them.
package system

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"hodei.dev/libs/eventing/eventingtest"
)

// Services are the binaries, in the order in which they are started here; any order works.
var Services = []string{"relay", "scheduler", "dispatcher", "registry", "provisioner", "timeout-monitor", "audit", "gateway"}

// Options say how the system is set up.
type Options struct {
	// Workers is the provider's max_workers; default 4. JobsPerWorker default 1; -1 = unlimited.
	Workers, JobsPerWorker, MinIdle int
	// Env is added to every service's environment.
	Env []string
}

// System is a running platform. Its methods fail the test.
type System struct {
	Client

	Dir         string
	PostgresURL string
	NATS        *server.Server
	Gateway     string

	procs map[string]*process
	opts  Options
}

type process struct {
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// Start starts everything and waits until it is ready. All of it ends with the test.
func Start(tb testing.TB, opts Options) *System {
	tb.Helper()
	if opts.Workers == 0 {
		opts.Workers = 4
	}
	s := &System{Client: Client{tb: tb, bin: binaries(tb)}, procs: map[string]*process{}, opts: opts}
	// Short, for the sockets in it, and open to the jobs' user.
	dir, err := os.MkdirTemp("/tmp", "hodei-system-") //nolint:usetesting // t.TempDir is long and closed
	if err != nil {
		tb.Fatal(err)
	}
	// Jobs run as another user and reach their work directories below it.
	if err := os.Chmod(dir, 0o711); err != nil {
		tb.Fatal(err)
	}
	s.Dir = dir
	tb.Cleanup(func() { s.cleanUp() })
	s.PostgresURL = eventingtest.Postgres(tb)
	s.startNATS()
	s.Gateway = freePort(s.tb)
	s.configure()
	s.run("hodei", "migrate")
	for _, name := range Services {
		s.StartService(name)
	}
	s.WaitReady()
	return s
}

// binaries is bin/, as `make build` leaves it.
func binaries(tb testing.TB) string {
	tb.Helper()
	bin := os.Getenv("HODEI_BIN")
	if bin == "" {
		tb.Fatal("HODEI_BIN is not set: run this by `make e2e`, or `make build` and set HODEI_BIN=$PWD/bin")
	}
	for _, name := range append([]string{"hodei", "hodei-agent"}, prefixed(Services)...) {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			tb.Fatalf("%v: run `make build`", err)
		}
	}
	return bin
}

func prefixed(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, "hodei-"+n)
	}
	return out
}

func (s *System) startNATS() {
	s.tb.Helper()
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: filepath.Join(s.Dir, "nats"), NoSigs: true, NoLog: true})
	if err != nil {
		s.tb.Fatal(err)
	}
	ns.Start()
	if !ns.ReadyForConnections(20 * time.Second) {
		s.tb.Fatal("the NATS server does not come up")
	}
	s.NATS = ns
}

// Conn is a connection to the system's NATS server that ends with the test.
func (s *System) Conn() *nats.Conn {
	s.tb.Helper()
	nc, err := nats.Connect(s.NATS.ClientURL())
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(nc.Close)
	return nc
}

func (s *System) socket(name string) string { return "unix://" + filepath.Join(s.Dir, name+".sock") }

// configure makes the environment that all services have, and the provisioner's file.
func (s *System) configure() {
	s.tb.Helper()
	agents := freePort(s.tb)
	s.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir,
		"HODEI_POSTGRES_URL=" + s.PostgresURL, "HODEI_NATS_URL=" + s.NATS.ClientURL(), "HODEI_LOG_LEVEL=info",
		"HODEI_AGENT_LISTEN=" + agents, "HODEI_AGENT_ADDRESS=" + agents,
		"HODEI_SERVER=" + s.Gateway,
	}
	for _, name := range Services {
		key := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		s.env = append(s.env, "HODEI_"+key+"_ADDRESS="+s.socket(name))
	}
	s.env = append(s.env, s.opts.Env...)
	jobsPerWorker := s.opts.JobsPerWorker
	switch jobsPerWorker {
	case 0:
		jobsPerWorker = 1
	case -1:
		jobsPerWorker = 0
	}
	file := fmt.Sprintf("state_dir: %s\nproviders:\n  - name: local\n    kind: process\n    max_workers: %d\n    jobs_per_worker: %d\n    min_idle: %d\n",
		filepath.Join(s.Dir, "state"), s.opts.Workers, jobsPerWorker, s.opts.MinIdle)
	if err := os.WriteFile(filepath.Join(s.Dir, "provisioner.yaml"), []byte(file), 0o600); err != nil {
		s.tb.Fatal(err)
	}
}

// StartService starts one service that does not run.
func (s *System) StartService(name string) {
	s.tb.Helper()
	listen := s.socket(name)
	if name == "gateway" {
		listen = s.Gateway
	}
	args := []string{}
	if name == "provisioner" {
		args = []string{"--config", filepath.Join(s.Dir, "provisioner.yaml")}
	}
	cmd := exec.Command(filepath.Join(s.bin, "hodei-"+name), args...)
	cmd.Env = append(append([]string{}, s.env...), "HODEI_LISTEN="+listen)
	path := filepath.Join(s.Dir, name+".log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.tb.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		s.tb.Fatalf("start %s: %v", name, err)
	}
	p := &process{cmd: cmd, log: path, exited: make(chan struct{})}
	s.procs[name] = p
	go func() {
		_ = cmd.Wait() // how it ended is asked of the process state
		_ = log.Close()
		close(p.exited)
	}()
}

// Kill ends a service with SIGKILL and waits until it is gone.
func (s *System) Kill(name string) {
	s.tb.Helper()
	p := s.procs[name]
	if err := p.cmd.Process.Kill(); err != nil {
		s.tb.Fatalf("kill %s: %v", name, err)
	}
	<-p.exited
}

// Stop ends a service with SIGTERM and fails the test unless it exits 0 in time.
func (s *System) Stop(name string) {
	s.tb.Helper()
	p := s.procs[name]
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.tb.Errorf("stop %s: %v", name, err)
		return
	}
	select {
	case <-p.exited:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			s.tb.Errorf("%s exited with %d after SIGTERM\n%s", name, code, tail(p.log))
		}
	case <-time.After(40 * time.Second):
		s.tb.Errorf("%s does not stop\n%s", name, tail(p.log))
	}
}

// WaitReady waits until every service answers, is ready and has handled the log.
func (s *System) WaitReady() {
	s.tb.Helper()
	s.Until(60*time.Second, "every service is ready", func() (bool, string) {
		var status struct {
			Services []struct {
				Name        string            `json:"name"`
				Ready       bool              `json:"ready"`
				Unreachable bool              `json:"unreachable"`
				Lag         int64             `json:"lag"`
				Problems    map[string]string `json:"problems"`
			} `json:"services"`
		}
		out, code := s.try(&status, "status", "-o", "json")
		if code != 0 {
			return false, out
		}
		for _, sv := range status.Services {
			if !sv.Ready || sv.Unreachable || sv.Lag > 0 {
				return false, fmt.Sprintf("%+v", sv)
			}
		}
		return len(status.Services) == len(Services)-1, out
	})
}

// run runs a binary that has to succeed.
func (s *System) run(name string, args ...string) {
	s.tb.Helper()
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Env = s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		s.tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// StopAll stops every service, clients' door first.
func (s *System) StopAll() {
	s.tb.Helper()
	for _, name := range slices.Backward(Services) {
		s.Stop(name)
	}
}

// cleanUp ends what is left, and shows the logs of a test that failed.
func (s *System) cleanUp() {
	for name, p := range s.procs {
		select {
		case <-p.exited:
		default:
			_ = p.cmd.Process.Kill() // it may have just ended
			<-p.exited
		}
		if s.tb.Failed() {
			s.tb.Logf("--- %s\n%s", name, tail(p.log))
		}
	}
	endAllIn(&s.Client, s.Dir) // agents outlive their services
	if s.tb.Failed() && s.PostgresURL != "" {
		s.tb.Logf("--- the log ends with\n%s", lastEvents(s.PostgresURL))
	}
	if s.NATS != nil {
		s.NATS.Shutdown()
		s.NATS.WaitForShutdown()
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		s.tb.Errorf("clean up: %v", err)
	}
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return end(string(b), 6000)
}

// lastEvents is the end of the event log, for the story of a failure.
func lastEvents(url string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, url)
	if err != nil {
		return err.Error()
	}
	defer db.Close(ctx)
	rows, err := db.Query(ctx, `select position || ' ' || to_char(occurred_at, 'HH24:MI:SS.MS') || ' ' || type || ' ' || stream_type || '/' || stream_id || ' by ' || source || ' ' || left(data::text, 300)
		from hodei.events order by position desc limit 60`)
	if err != nil {
		return err.Error()
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err.Error()
	}
	slices.Reverse(lines)
	return strings.Join(lines, "\n")
}
