package pgserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// inheritedDir names the directory that a program inherits as its first extra
// file, without the directories above it. (The working directory would not do:
// up to version 15 the programs leave it to find themselves, and cannot return.)
const inheritedDir = "/proc/self/fd/3"

// bindToParent has the child told to stop at once when its parent ends.
func bindToParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }

// alive reports whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	// The state follows the name, which stands in parentheses.
	i := bytes.LastIndexByte(stat, ')')
	return i < 0 || i+2 >= len(stat) || stat[i+2] != 'Z'
}

// runsIn reports whether a process has a directory as its working directory, as
// a postgres has its data directory.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	want, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, want)
}
