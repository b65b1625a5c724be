//go:build linux

package proctree

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
)

// roleEnv makes the test binary play another program.
const roleEnv = "PROCTREE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "starter":
		starter()
		os.Exit(1)
	case "adopter":
		os.Exit(adopter())
	}
}

// starter starts a tree that outlives it, says so, and waits to be killed.
func starter() {
	root, err := NewRoot(Config{StateDir: os.Getenv("STATE"), Mode: Mode(os.Getenv("MODE"))})
	if err != nil {
		fmt.Println(err)
		return
	}
	tree, err := root.Open("victim")
	if err == nil {
		err = tree.Start(exec.Command("sh", "-c", daemon+"; exec sleep 1000"))
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	select {}
}

// adopter is a subreaper without cgroups whose job hides as well as it can.
func adopter() int {
	root, err := NewRoot(Config{Mode: Groups, Subreaper: true})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer root.Close()
	tree, err := root.Open("job")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.Command("sh", "-c", "(setsid env -i sleep 1000 &); (setsid env -i true &); echo started; sleep 0.3")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = tree.Start(cmd)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_, _ = bufio.NewReader(out).ReadString('\n')
	_ = out.Close()
	if err := cmd.Wait(); err != nil {
		fmt.Println("the exit status of the main process was taken:", err)
		return 1
	}
	ps, err := tree.Processes()
	if err != nil || len(ps) != 1 {
		fmt.Println("before:", ps, err)
		return 1
	}
	if err := tree.Kill(context.Background()); err != nil {
		fmt.Println(err)
		return 1
	}
	for deadline := time.Now().Add(5 * time.Second); len(ownChildren()) > 0; { // zombies count
		if time.Now().After(deadline) {
			fmt.Println("not reaped:", ownChildren())
			return 1
		}
		_ = pollExit(context.Background(), ps[0])
	}
	if err := tree.Remove(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("clean")
	return 0
}

// daemon leaves a process behind that has another session and no parent.
const daemon = `(setsid sh -c 'echo daemon; exec sleep 1000' </dev/null 2>/dev/null &)`

// eachMode runs a test in each mode that works on this machine.
func eachMode(t *testing.T, test func(t *testing.T, mode Mode)) {
	for _, mode := range []Mode{Cgroup2, Cgroup1, Groups} {
		t.Run(string(mode), func(t *testing.T) {
			if _, _, err := findPlacement(mode); err != nil {
				t.Skip(err)
			}
			test(t, mode)
		})
	}
}

func newTree(t *testing.T, mode Mode) *Tree {
	t.Helper()
	root, err := NewRoot(Config{StateDir: t.TempDir(), Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := root.Open("t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(tree.Kill(ctx), tree.Remove()); err != nil {
			t.Error(err)
		}
		root.Close()
	})
	return tree
}

// run starts a script in the tree and returns after it has printed n lines.
func run(t *testing.T, tree *Tree, n int, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = w
	if err := tree.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.Close()
	lines := bufio.NewReader(out)
	for range n {
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatalf("waiting for the script: %v", err)
		}
	}
	return cmd
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestKillEndsWhatItsParentLeftBehind(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		cmd := run(t, tree, 2, daemon+"; echo main; exec sleep 1000")
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, alive := tree.Main(); alive {
			t.Error("the main process counts as alive")
		}
		ps, err := tree.Processes()
		if err != nil || len(ps) != 1 {
			t.Fatalf("left behind: %v, %v; want the daemon", ps, err)
		}
		if err := tree.Remove(); !errors.Is(err, fault.Precondition) {
			t.Errorf("Remove with a process inside: %v", err)
		}
		if err := tree.Kill(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if running(ps[0]) {
			t.Error("the daemon still runs")
		}
	})
}

func TestAnotherProcessEndsTheTree(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleEnv+"=starter", "STATE="+dir, "MODE="+string(mode))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatal(line)
		}
		if err := cmd.Process.Kill(); err != nil { // -9: nothing is tidied up
			t.Fatal(err)
		}
		_ = cmd.Wait()

		root, err := NewRoot(Config{StateDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		names, err := root.List()
		if err != nil || !slices.Equal(names, []string{"victim"}) {
			t.Fatalf("recorded trees: %v, %v", names, err)
		}
		tree, err := root.Open("victim")
		if err != nil {
			t.Fatal(err)
		}
		if tree.Mode() != mode {
			t.Errorf("mode %s, want that of its maker, %s", tree.Mode(), mode)
		}
		main, alive := tree.Main()
		if !alive {
			t.Error("the main process was not found")
		}
		ended := make(chan error, 1)
		go func() { ended <- tree.WaitMain(deadline(t)) }()
		if err := tree.Kill(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil || running(main) {
			t.Errorf("main process: %v, running %v", err, running(main))
		}
		if err := tree.Remove(); err != nil {
			t.Fatal(err)
		}
		if names, _ := root.List(); len(names) != 0 {
			t.Errorf("still recorded: %v", names)
		}
	})
}

func TestNestedTreeEndsWithTheOuter(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		cmd := exec.Command(os.Args[0]) // plays an agent with a job
		cmd.Env = append(os.Environ(), roleEnv+"=starter", "STATE="+t.TempDir(), "MODE="+string(mode))
		out, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd.Stdout = w
		if err := tree.Start(cmd); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatal(line)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		ps, err := tree.Processes()
		if err != nil || len(ps) < 1 {
			t.Fatalf("the job of the killed agent: %v, %v", ps, err)
		}
		if err := tree.Kill(deadline(t)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestForkBombIsEnded(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		cmd := run(t, tree, 1, `b() { while :; do setsid sleep 0.05 & wait; done; }; b & b & b & echo go; wait`)
		if err := tree.Kill(deadline(t)); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	})
}

func TestWaitAndKillKeepToTheirContext(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		cmd := run(t, tree, 1, "echo go; exec sleep 1000")
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		defer cancel()
		if err := tree.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
		var left *LeftoverError
		if err := tree.Kill(ctx); !errors.As(err, &left) || len(left.Left) != 1 {
			t.Errorf("Kill without time: %v", err)
		}
		empty := make(chan error, 1)
		go func() { empty <- tree.Wait(deadline(t)) }()
		if err := tree.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := <-empty; err != nil {
			t.Errorf("Wait: %v", err)
		}
	})
}

func TestLimitsAndUsage(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		caps := tree.root.Capabilities()
		got, err := tree.Limit(Limits{MemoryBytes: 32 << 20, CPUMillis: 500, PIDs: 20})
		if err != nil {
			t.Fatal(err)
		}
		if want := (Enforced{caps.Memory, caps.CPU, caps.PIDs}); got != want {
			t.Fatalf("enforced %+v, detected %+v", got, want)
		}
		if mode == Groups {
			return
		}
		cmd := run(t, tree, 0, `x=$(head -c 200000000 /dev/zero | tr '\0' 'x'); echo ${#x}`)
		err = cmd.Wait()
		if caps.Memory && (!tree.OOMKilled() || err == nil) {
			t.Errorf("200 MB in a tree of 32: %v, out of memory %v", err, tree.OOMKilled())
		}
		u := tree.Usage()
		if u.CPUUser+u.CPUSystem <= 0 {
			t.Errorf("usage %+v", u)
		}
		if caps.Memory && u.MemoryPeakBytes < 16<<20 {
			t.Errorf("peak %d", u.MemoryPeakBytes)
		}
		if caps.PIDs {
			cmd := run(t, tree, 0, `for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do sleep 1000 & done 2>/dev/null; wait`)
			if err := cmd.Wait(); err == nil {
				t.Error("more processes than allowed")
			}
		}
	})
}

func TestImpossibleLimitsAreRefused(t *testing.T) {
	tree := newTree(t, Groups)
	for _, l := range []Limits{{MemoryBytes: -1}, {MemoryBytes: 1000}, {CPUMillis: 1}, {PIDs: 1}, {PIDs: -3}} {
		if _, err := tree.Limit(l); !errors.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// On a machine without version 1 the same limits go to other files.
func TestLimitsOfVersion2(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max"} {
		if err := os.WriteFile(dir+"/"+f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := dirs{Unified: dir}
	e, err := d.limit(Limits{MemoryBytes: 64 << 20, CPUMillis: 1500})
	if err != nil || e != (Enforced{Memory: true, CPU: true}) {
		t.Fatalf("%+v, %v", e, err)
	}
	for f, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "0", "memory.oom.group": "1", "cpu.max": "150000 100000", "pids.max": "max",
	} {
		if got := words(dir + "/" + f); strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", f, got, want)
		}
	}
	write := func(f, s string) {
		if err := os.WriteFile(dir+"/"+f, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\n")
	write("memory.peak", "4096\n")
	write("memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n")
	if u := d.usage(); u != (Usage{20 * time.Microsecond, 10 * time.Microsecond, 4096}) {
		t.Errorf("usage %+v", u)
	}
	if !d.oomKilled() {
		t.Error("out of memory was not seen")
	}
}

func TestSubreaperKillsAndReapsWhatHides(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"=adopter")
	out, err := cmd.Output()
	if err != nil || string(out) != "clean\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestNames(t *testing.T) {
	root, err := NewRoot(Config{Mode: Groups})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"", "../x", "a/b", ".hidden", "a b", strings.Repeat("x", 151)} {
		if _, err := root.Open(name); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestContainerPathsOfCgroups(t *testing.T) {
	for _, c := range []struct {
		root, path, want string
	}{
		{"/", "/", "/m"},
		{"/", "/a/b", "/m/a/b"},
		{"/docker/1", "/docker/1", "/m"},
		{"/docker/1", "/docker/1/x", "/m/x"},
		{"/docker/1", "/docker/12", "/m/docker/12"},
	} {
		if got := (cgroupMount{"/m", c.root}).dir(c.path); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// The child is where it should be, and the thread that started it is not.
func TestStartLeavesTheThreadWhereItWas(t *testing.T) {
	eachMode(t, func(t *testing.T, mode Mode) {
		tree := newTree(t, mode)
		if _, err := tree.Limit(Limits{MemoryBytes: 64 << 20, PIDs: 50}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", "cat /proc/self/cgroup; umask; ps -o sid= -p $$; echo $$")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		if err := tree.Start(cmd); err != nil {
			t.Fatal(err)
		}
		w.Close()
		raw, _ := io.ReadAll(r)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		out := string(raw)
		for _, dir := range tree.st.Dirs.all() {
			base := dir[strings.LastIndexByte(dir, '/'):]
			if !strings.Contains(out, base) {
				t.Errorf("not in %s:\n%s", dir, out)
			}
			if inside := words(dir + "/cgroup.procs"); len(inside) > 0 {
				t.Errorf("still in %s: %v", dir, inside)
			}
		}
		f := strings.Fields(out)
		if n := len(f); f[n-1] != f[n-2] || !strings.HasSuffix(f[n-3], "022") {
			t.Errorf("session or umask:\n%s", out)
		}
	})
}

func BenchmarkStartKillRemove(b *testing.B) {
	for _, mode := range []Mode{Cgroup2, Cgroup1, Groups} {
		b.Run(string(mode), func(b *testing.B) {
			root, err := NewRoot(Config{Mode: mode})
			if err != nil {
				b.Skip(err)
			}
			defer root.Close()
			for b.Loop() {
				tree, err := root.Open("bench")
				if err != nil {
					b.Fatal(err)
				}
				cmd := exec.Command("/bin/true")
				if err := tree.Start(cmd); err != nil {
					b.Fatal(err)
				}
				if err := errors.Join(cmd.Wait(), tree.Kill(b.Context()), tree.Remove()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
