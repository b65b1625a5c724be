package pgserver_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hodei.dev/libs/eventing/pgserver"
)

// parentEnv makes the test's binary a parent: "bound" or "free", and the data directory.
const parentEnv = "PGSERVER_TEST_PARENT"

func TestMain(m *testing.M) {
	if order := os.Getenv(parentEnv); order != "" {
		how, dir, _ := strings.Cut(order, " ")
		s, err := pgserver.Start(context.Background(), pgserver.Config{
			DataDir: dir, Unsafe: true, BindToParent: how == "bound", RuntimeDir: filepath.Join(filepath.Dir(dir), "s"),
		})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.PID())
		select {} // until it is killed
	}
	os.Exit(m.Run())
}

// killedParent returns the process of a server whose parent was killed.
func killedParent(t *testing.T, how, dir string) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.CommandContext(t.Context(), self)
	parent.Env = append(os.Environ(), parentEnv+"="+how+" "+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(line)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	return pid
}

// A parent that is killed leaves its server behind, and the next one adopts it.
func TestParentKilled(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	pid := killedParent(t, "free", dir)
	s := start(t, pgserver.Config{DataDir: dir})
	if !s.Adopted() || s.PID() != pid {
		t.Errorf("adopted: %t, process %d; want %d", s.Adopted(), s.PID(), pid)
	}
	create(t, s)
	stop(t, s)
	select {
	case <-s.Exited():
	case <-time.After(10 * time.Second):
		t.Error("the adopted server did not end")
	}
}

// Bound to its parent, a server ends with it.
func TestBoundParentKilled(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	pid := killedParent(t, "bound", dir)
	deadline := time.NewTimer(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for syscall.Kill(pid, 0) == nil && !zombie(pid) {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("the server outlives its parent")
		}
	}
}

// zombie reports whether a process waits to be reaped by whoever inherited it.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(stat), ") Z ")
}
