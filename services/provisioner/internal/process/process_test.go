package process_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/platform/bootstrap"
	"hodei.dev/libs/platform/proctree"
	"hodei.dev/services/provisioner/internal/app"
	"hodei.dev/services/provisioner/internal/process"
	"hodei.dev/services/provisioner/internal/providertest"
)

var quiet = slog.New(slog.DiscardHandler)

// daemon is an agent that starts a grandchild in a session of its own, with an
// environment of its own, and then waits. It writes the grandchild's pid to a pipe.
const daemon = `#!/bin/sh
cat <&3 >boot.json
tr '\0' '\n' </proc/$$/cmdline >argv
exec 3<&-
setsid sh -c 'sleep 86400 & echo $! >daemon.new; mv daemon.new daemon; wait' >/dev/null 2>&1 &
while [ ! -e daemon ]; do :; done
mkfifo never
echo ready >ready.new; mv ready.new ready
read x <never
`

func agent(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(file, []byte(daemon), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t *testing.T, cfg process.Config) *process.Provider {
	t.Helper()
	cfg.Log = quiet
	p, err := process.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		list, err := p.List(ctx)
		if err != nil {
			t.Error(err)
		}
		for _, r := range list {
			if err := p.Destroy(ctx, r.WorkerID); err != nil {
				t.Error(err)
			}
		}
		p.Close()
	})
	return p
}

func spec(id string) app.WorkerSpec {
	return app.WorkerSpec{
		WorkerID: id, Provider: "test",
		Token: func(context.Context) (app.Token, error) {
			return app.Token{Value: "the-secret", AgentAddress: "127.0.0.1:7434"}, nil
		},
	}
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// await waits for what another process does.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(raw), ") Z ")
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, mode := range []proctree.Mode{proctree.Auto, proctree.Groups} {
		t.Run("mode "+string(mode), func(t *testing.T) {
			providertest.Run(t, providertest.Subject{Kind: provider.Process, New: func(t *testing.T) app.Provider {
				t.Helper()
				return open(t, process.Config{StateDir: t.TempDir(), AgentBinary: agent(t), Mode: mode})
			}})
		})
	}
}

// start makes a worker and waits until its agent and the daemon run.
func start(t *testing.T, p *process.Provider, id string) (dir string, agentPID, daemonPID int) {
	t.Helper()
	r, err := p.Create(t.Context(), spec(id))
	if err != nil {
		t.Fatal(err)
	}
	dir = r.Details["dir"]
	await(t, "the agent", func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil })
	agentPID, err = strconv.Atoi(r.Details["pid"])
	if err != nil {
		t.Fatal(err)
	}
	return dir, agentPID, pidIn(t, filepath.Join(dir, "daemon"))
}

func TestAgentGetsItsBootstrapAndNothingElse(t *testing.T) {
	t.Parallel()
	p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: agent(t)})
	id := newID()
	dir, pid, _ := start(t, p, id)
	raw, err := os.ReadFile(filepath.Join(dir, "boot.json"))
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrap.Bootstrap
	if err := json.Unmarshal(raw, &b); err != nil {
		t.Fatal(err)
	}
	if b.WorkerID != id || b.Token != "the-secret" || b.AgentAddress != "127.0.0.1:7434" || b.WorkDir != filepath.Join(dir, "work") {
		t.Errorf("the bootstrap is %+v", b)
	}
	if os.Geteuid() == 0 && (b.RunAs == nil || b.RunAs.UID < 61184 || b.RunAs.UID > 65519) {
		t.Errorf("jobs run as %+v, want a user of the worker's own", b.RunAs)
	}
	argv, err := os.ReadFile(filepath.Join(dir, "argv"))
	if err != nil || !strings.HasSuffix(string(argv), "--bootstrap-fd\n3\n") {
		t.Errorf("argv %q, %v", argv, err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	for kv := range strings.SplitSeq(strings.TrimRight(string(env), "\x00"), "\x00") {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.Contains(" PATH LANG HOME TMPDIR HODEI_TREE PWD OLDPWD SHLVL _ ", " "+name+" ") || strings.Contains(kv, "the-secret") {
			t.Errorf("the agent has %s in its environment", kv)
		}
	}
	for name, want := range map[string]os.FileMode{dir: 0o711, filepath.Join(dir, "work"): 0o711, filepath.Join(dir, "worker.json"): 0o600, filepath.Join(dir, "agent.log"): 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, info.Mode().Perm(), err, want)
		}
	}
}

func TestWorkersHaveUsersOfTheirOwn(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("without root's rights jobs run as the own user")
	}
	dir := t.TempDir()
	binary := agent(t)
	p := open(t, process.Config{StateDir: dir, AgentBinary: binary})
	seen := map[uint32]bool{}
	user := func(id string) uint32 {
		var b bootstrap.Bootstrap
		raw, err := os.ReadFile(filepath.Join(dir, "workers", id, "boot.json"))
		if err = errors.Join(err, json.Unmarshal(raw, &b)); err != nil || b.RunAs == nil {
			t.Fatal(err)
		}
		return b.RunAs.UID
	}
	for i := range 3 {
		if i == 2 { // the next provisioner knows which users are taken
			p.Close()
			p = open(t, process.Config{StateDir: dir, AgentBinary: binary})
		}
		id := newID()
		start(t, p, id)
		if uid := user(id); seen[uid] {
			t.Fatalf("two workers have user %d", uid)
		} else {
			seen[uid] = true
		}
	}
}

func TestKilledAgentAndItsDaemon(t *testing.T) {
	t.Parallel()
	for _, mode := range []proctree.Mode{proctree.Auto, proctree.Groups} {
		t.Run("mode "+string(mode), func(t *testing.T) {
			t.Parallel()
			p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: agent(t), Mode: mode})
			gone := make(chan app.Gone, 8)
			go func() { _ = p.Watch(t.Context(), func(g app.Gone) { gone <- g }) }()
			id := newID()
			dir, pid, child := start(t, p, id)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if g := <-gone; g.WorkerID != id || !strings.Contains(g.Reason, "killed") {
				t.Errorf("told %+v", g)
			}
			if !alive(child) {
				t.Fatal("the daemon went by itself: the test proves nothing")
			}
			if err := p.Destroy(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if alive(child) || alive(pid) {
				t.Error("something of it still runs")
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its directory is still there: %v", err)
			}
		})
	}
}

// An agent that is told to stop has its time; one that is deaf has no more than that.
func TestStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		name, trap string
		grace      time.Duration
		ends       bool
	}{
		{"heeds", "trap 'echo bye >" + dir + "/bye; exit 0' TERM", time.Minute, true},
		{"is deaf", "trap '' TERM", 100 * time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := filepath.Join(t.TempDir(), "agent")
			up := script + ".up"
			if err := os.WriteFile(script, []byte("#!/bin/sh\n"+c.trap+"\necho $$ >"+up+"\nwhile :; do sleep 0.01; done\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: script})
			id := newID()
			if _, err := p.Create(t.Context(), spec(id)); err != nil {
				t.Fatal(err)
			}
			await(t, "the agent to be up", func() bool { raw, err := os.ReadFile(up); return err == nil && strings.HasSuffix(string(raw), "\n") })
			pid := pidIn(t, up)
			if err := p.Stop(t.Context(), id, c.grace); err != nil {
				t.Fatal(err)
			}
			if alive(pid) == c.ends {
				t.Errorf("after Stop it lives: %v", alive(pid))
			}
			if _, err := os.Stat(dir + "/bye"); err != nil {
				t.Error(err)
			}
			if err := p.Destroy(t.Context(), id); err != nil || alive(pid) {
				t.Errorf("after Destroy: %v", err)
			}
			if err := p.Stop(t.Context(), id, time.Minute); err != nil {
				t.Errorf("of a worker that is no more: %v", err)
			}
		})
	}
}

func TestAdopted(t *testing.T) {
	t.Parallel()
	dir, binary := t.TempDir(), agent(t)
	first := open(t, process.Config{StateDir: dir, AgentBinary: binary})
	living, ending := newID(), newID()
	_, pid, _ := start(t, first, living)
	_, ended, child := start(t, first, ending)
	first.Close()
	if err := syscall.Kill(ended, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	await(t, "the agent's end", func() bool { return !alive(ended) })

	second := open(t, process.Config{StateDir: dir, AgentBinary: binary})
	gone := make(chan app.Gone, 8)
	go func() { _ = second.Watch(t.Context(), func(g app.Gone) { gone <- g }) }()
	if g := <-gone; g.WorkerID != ending {
		t.Fatalf("told %+v, want the one that ended meanwhile", g)
	}
	w := spec(living)
	w.Token = func(context.Context) (app.Token, error) { return app.Token{}, fault.New(fault.Internal, "asked again") }
	r, err := second.Create(t.Context(), w)
	if err != nil || r.Details["pid"] != strconv.Itoa(pid) || !second.Here(r.Details) {
		t.Fatalf("create finds %+v, %v; want pid %d", r, err, pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if g := <-gone; g.WorkerID != living {
		t.Fatalf("told %+v", g)
	}
	if err := second.Destroy(t.Context(), ending); err != nil || alive(child) {
		t.Fatalf("the daemon of an adopted worker is left: %v", err)
	}
}

func TestTakenOverFromAnotherProcess(t *testing.T) {
	t.Parallel()
	dir, binary := t.TempDir(), agent(t)
	standby := open(t, process.Config{StateDir: dir, AgentBinary: binary})
	active := open(t, process.Config{StateDir: dir, AgentBinary: binary})
	id := newID()
	_, pid, _ := start(t, active, id)
	active.Close()
	gone := make(chan app.Gone, 8)
	go func() { _ = standby.Watch(t.Context(), func(g app.Gone) { gone <- g }) }()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if g := <-gone; g.WorkerID != id {
		t.Fatalf("told %+v", g)
	}
}

// TestJobsSeeNothingOfOthers tries what a job may try with the user of one worker.
func TestJobsSeeNothingOfOthers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root's rights")
	}
	state, err := os.MkdirTemp("", "hodei-users-") //nolint:usetesting // t.TempDir is below a directory that nobody else may search
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	p := open(t, process.Config{StateDir: state, AgentBinary: agent(t)})
	mine, other := newID(), newID()
	dir, _, _ := start(t, p, mine)
	foreign, _, _ := start(t, p, other)
	const uid, otherUID = 61184, 61185
	for job, id := range map[string]int{filepath.Join(dir, "work", "j"): uid, filepath.Join(foreign, "work", "j"): otherUID} {
		if err := errors.Join(os.Mkdir(job, 0o700), os.WriteFile(filepath.Join(job, "secret"), nil, 0o644), os.Chown(job, id, id)); err != nil {
			t.Fatal(err)
		}
	}
	try := func(args ...string) error {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
	if err := try("/bin/cat", filepath.Join(dir, "work", "j", "secret")); err != nil {
		t.Fatalf("a job cannot read its own file: %v", err)
	}
	for _, args := range [][]string{
		{"/bin/cat", filepath.Join(foreign, "work", "j", "secret")},
		{"/bin/ls", filepath.Join(state, "workers")},
		{"/bin/ls", dir},
		{"/bin/ls", filepath.Join(dir, "work")},
		{"/bin/cat", filepath.Join(dir, "worker.json")},
		{"/bin/cat", filepath.Join(dir, "agent.log")},
		{"/bin/ls", filepath.Join(state, "trees")},
		{"/bin/sh", "-c", ": >" + filepath.Join(dir, "work", "mine")},
	} {
		if err := try(args...); err == nil {
			t.Errorf("a job can do %v", args)
		}
	}
}

func TestHalfMadeIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := open(t, process.Config{StateDir: dir, AgentBinary: agent(t)})
	id := newID()
	if err := os.MkdirAll(filepath.Join(dir, "workers", id, "work", "old"), 0o700); err != nil {
		t.Fatal(err)
	}
	if list, err := p.List(t.Context()); err != nil || len(list) != 1 {
		t.Fatalf("a half made worker is not listed: %v, %v", list, err)
	}
	start(t, p, id)
	if _, err := os.Stat(filepath.Join(dir, "workers", id, "work", "old")); !errors.Is(err, os.ErrNotExist) {
		t.Error("what was there before is still there")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: agent(t)})
	w := spec(newID())
	w.CPUMillis, w.MemoryBytes = 500, 32<<20
	r, err := p.Create(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the agent", func() bool { _, err := os.Stat(filepath.Join(r.Details["dir"], "ready")); return err == nil })
	var b bootstrap.Bootstrap
	raw, err := os.ReadFile(filepath.Join(r.Details["dir"], "boot.json"))
	if err = errors.Join(err, json.Unmarshal(raw, &b)); err != nil {
		t.Fatal(err)
	}
	c := p.Capabilities()
	want := bootstrap.Limits{CPUMillis: 500, MemoryBytes: 32 << 20, CPUEnforced: c.EnforcesCPU, MemoryEnforced: c.EnforcesMemory}
	if b.Limits != want {
		t.Errorf("limits %+v, want %+v", b.Limits, want)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	binary := agent(t)
	p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: binary})
	if err := p.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(binary); err != nil {
		t.Fatal(err)
	}
	if err := p.Health(t.Context()); !errors.Is(err, fault.Unavailable) {
		t.Errorf("without the agent: %v", err)
	}
	if _, err := p.Create(t.Context(), spec(newID())); !errors.Is(err, fault.Unavailable) {
		t.Errorf("create without the agent: %v", err)
	}
	other := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: binary})
	if other.Here(map[string]string{"instance": "another"}) || !other.Here(nil) {
		t.Error("it takes another machine's resource for its own")
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root's rights")
	}
	p := open(t, process.Config{StateDir: t.TempDir(), AgentBinary: agent(t)})
	for runAs, ok := range map[string]bool{
		"": true, "nobody": true, "1234": true, "1234:5678": true, "root": true, "0": true,
		"no-such-user": false, "0:1234": false, "postgres": false, "a:b": false, "-1": false,
	} {
		err := p.Accepts(provider.Spec{Name: "x", Kind: provider.Process, RunAs: runAs})
		if ok != (err == nil) {
			t.Errorf("run_as %q: %v", runAs, err)
		}
	}
}
