// Package compose brings deploy/compose up from its own Dockerfile, as a user
// would, and runs a job through it. It needs Docker and the base images
// (`make e2e-compose` checks both) and bin/hodei, found through HODEI_BIN.
package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// file is the compose file, from this folder.
const file = "../../deploy/compose/compose.yaml"

func TestComposeRunsAJob(t *testing.T) {
	hodei := filepath.Join(os.Getenv("HODEI_BIN"), "hodei")
	if _, err := os.Stat(hodei); err != nil {
		t.Fatalf("no bin/hodei (HODEI_BIN=%q): run it by `make e2e-compose`", os.Getenv("HODEI_BIN"))
	}
	p := up(t)

	containers := strings.Fields(p.docker(t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+p.name))
	if len(containers) == 0 {
		t.Fatal("the project has no containers")
	}
	for _, c := range containers {
		p.await(t, c)
	}

	gateway := strings.TrimSpace(p.docker(t, "ps", "-q", "--filter", "label=com.docker.compose.project="+p.name,
		"--filter", "label=com.docker.compose.service=gateway"))
	server, _, _ := strings.Cut(p.docker(t, "port", gateway, "7433"), "\n")

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), hodei, "run", "--", "sh", "-c", "echo hello; exit 3")
	cmd.Env = append(os.Environ(), "HODEI_SERVER="+server)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || stdout.String() != "hello\n" {
		t.Errorf("hodei run against %s: got %v and output %q, want exit status 3 and \"hello\\n\"\n%s", server, err, &stdout, &stderr)
	}
}

// project is one start of the compose file, under a name of its own.
type project struct {
	name    string
	compose []string
	env     []string
}

// up builds and starts the project and takes it down when the test ends.
func up(t *testing.T) *project {
	t.Helper()
	p := &project{
		name:    fmt.Sprintf("hodei-test-%d", os.Getpid()),
		compose: []string{"docker-compose"},
		// So that a platform that already runs here keeps its port.
		env: append(os.Environ(), "HODEI_PORT="+freePort(t)),
	}
	if exec.CommandContext(t.Context(), "docker", "compose", "version").Run() == nil {
		p.compose = []string{"docker", "compose"}
	}
	p.compose = append(p.compose, "-f", file, "-p", p.name)
	t.Cleanup(func() {
		// The test's context is over by now.
		ctx := context.WithoutCancel(t.Context())
		if t.Failed() {
			out, _ := p.run(ctx, append(p.compose, "logs", "--tail=40")...)
			t.Logf("logs of the containers:\n%s", out)
		}
		if out, err := p.run(ctx, append(p.compose, "down", "-v", "-t", "10")...); err != nil {
			t.Errorf("compose down: %v\n%s", err, out)
		}
	})
	if out, err := p.run(t.Context(), append(p.compose, "up", "-d", "--build")...); err != nil {
		t.Fatalf("compose up: %v\n%s", err, out)
	}
	return p
}

// await waits until a container is healthy, runs without a health check, or has ended well.
func (p *project) await(t *testing.T, container string) {
	t.Helper()
	const format = `{{.Name}} {{.State.Status}} {{.State.ExitCode}} {{if .State.Health}}{{.State.Health.Status}}{{end}}`
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(3 * time.Minute)
	for {
		state := strings.TrimSpace(p.docker(t, "inspect", "-f", format, container))
		switch f := strings.Fields(state); {
		case len(f) == 4 && f[3] == "healthy",
			len(f) == 3 && f[1] == "running",
			len(f) >= 3 && f[1] == "exited" && f[2] == "0":
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after 3 minutes: %s", state)
		}
	}
}

func (p *project) docker(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := p.run(t.Context(), append([]string{"docker"}, argv...)...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// run returns the standard output, and with an error the standard error too.
func (p *project) run(ctx context.Context, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String() + stderr.String(), err
	}
	return stdout.String(), nil
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
