package system

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// devStarts and devStops bound how long `hodei dev` may take to be ready (it makes a
// database first) and to end (running jobs have their kill grace).
const devStarts, devStops = 90 * time.Second, 60 * time.Second

// Dev is a `hodei dev` on a data directory of its own, which it can be started on
// again and again. Everything that it leaves is removed with the test.
type Dev struct {
	Client

	// DataDir is its data directory, Listen the clients' door.
	DataDir, Listen string
	// Env is added to its environment.
	Env []string

	args       []string
	natsListen string
	running    *Running
}

// NewDev prepares a platform in one process; Up starts it. args are more options
// for `hodei dev`. below is a path in the temporary directory, to make a long one.
func NewDev(tb testing.TB, below string, args ...string) *Dev {
	tb.Helper()
	bin := binaries(tb)
	// Open to the jobs' user, who reaches its work directories below it.
	dir, err := os.MkdirTemp("/tmp", "hodei-dev-") //nolint:usetesting // t.TempDir is closed to others
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		tb.Fatal(err)
	}
	d := &Dev{DataDir: filepath.Join(dir, below), Listen: freePort(tb), natsListen: freePort(tb), args: args}
	if err := os.MkdirAll(d.DataDir, 0o711); err != nil {
		tb.Fatal(err)
	}
	d.Client = Client{tb: tb, bin: bin, env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "HODEI_SERVER=" + d.Listen}}
	tb.Cleanup(func() {
		d.cleanUp()
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("clean up: %v", err)
		}
	})
	return d
}

func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Command starts `hodei dev` on the data directory and does not wait.
func (d *Dev) Command() *Running {
	d.tb.Helper()
	args := append([]string{"dev", "--data-dir", d.DataDir, "--listen", d.Listen, "--nats-listen", d.natsListen, "--log-level", "info"}, d.args...)
	return d.Start(d.Env, "hodei", args...)
}

// Up starts it and waits for its ready line, which it returns.
func (d *Dev) Up() string {
	d.tb.Helper()
	d.running = d.Command()
	var line string
	d.Until(devStarts, "hodei dev says that it is ready", func() (bool, string) {
		said := d.running.Stderr.String()
		if d.running.over() {
			d.tb.Fatalf("hodei dev ended\n%s", said)
		}
		for l := range strings.Lines(said) {
			if strings.HasPrefix(l, "hodei is ready") {
				line = l
			}
		}
		return line != "", said
	})
	return line
}

// Running is the process that Up started.
func (d *Dev) Running() *Running { return d.running }

// Down ends it with SIGTERM; it has to exit with 0.
func (d *Dev) Down() {
	d.tb.Helper()
	d.running.Signal(d.tb, syscall.SIGTERM)
	if code := d.running.Wait(d.tb, devStops); code != 0 {
		d.tb.Errorf("hodei dev exits with %d after SIGTERM\n%s", code, d.running.Stderr.String())
	}
}

// Kill ends it with SIGKILL: what it started is left behind.
func (d *Dev) Kill() {
	d.tb.Helper()
	d.running.Signal(d.tb, syscall.SIGKILL)
	d.running.Wait(d.tb, devStops)
}

// PostgresURL is the private server's, while it runs.
func (d *Dev) PostgresURL() string {
	d.tb.Helper()
	content, err := os.ReadFile(filepath.Join(d.DataDir, "postgres", "postmaster.pid"))
	if err != nil {
		d.tb.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	if len(lines) < 5 {
		d.tb.Fatalf("postmaster.pid has no directory of a socket: %q", content)
	}
	query := url.Values{"host": {lines[4]}, "user": {"hodei"}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", Path: "/hodei", RawQuery: query.Encode()}).String()
}

// Conn is a connection to the embedded NATS server that ends with the test.
func (d *Dev) Conn() *nats.Conn {
	d.tb.Helper()
	nc, err := nats.Connect("nats://" + d.natsListen)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.tb.Cleanup(nc.Close)
	return nc
}

// Processes lists what runs on the data directory: the platform, its Postgres, its
// agents and their jobs (their work directories lie in it). Empty when all is over.
func (d *Dev) Processes() []string {
	d.tb.Helper()
	return runningIn(d.tb, d.DataDir)
}

// runningIn lists the processes that name a directory or work below it.
func runningIn(tb testing.TB, dir string) []string {
	tb.Helper()
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for _, proc := range found {
		cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
		if err != nil {
			continue // it has just ended
		}
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd")) // of one that has ended: nothing
		if strings.Contains(string(cmdline), dir) || strings.HasPrefix(cwd, dir) {
			out = append(out, fmt.Sprintf("%s: %s in %s", filepath.Base(proc), strings.ReplaceAll(string(cmdline), "\x00", " "), cwd))
		}
	}
	return out
}

// endAllIn kills what runs in a directory that is a test's own, until nothing does.
func endAllIn(c *Client, dir string) {
	c.tb.Helper()
	c.Until(20*time.Second, "nothing is left on "+dir, func() (bool, string) {
		left := runningIn(c.tb, dir)
		for _, p := range left {
			var pid int
			if _, err := fmt.Sscanf(p, "%d:", &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have just ended
			}
		}
		return len(left) == 0, strings.Join(left, "\n")
	})
}

// cleanUp ends what a test that failed has left behind.
func (d *Dev) cleanUp() {
	if d.tb.Failed() && d.running != nil {
		d.tb.Logf("--- hodei dev\n%s", end(d.running.Stderr.String(), 8000))
		if _, err := os.Stat(filepath.Join(d.DataDir, "postgres", "postmaster.pid")); err == nil {
			d.tb.Logf("--- the log ends with\n%s", lastEvents(d.PostgresURL()))
		}
	}
	if d.running != nil && !d.running.over() {
		d.running.Signal(d.tb, syscall.SIGKILL)
		<-d.running.exited
	}
	endAllIn(&d.Client, d.DataDir)
}

func end(s string, n int) string { return s[max(0, len(s)-n):] }
