package run

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"hodei.dev/libs/platform/proctree"
)

// attributes are how the kernel is to start the job. It dies with the agent: what
// it started meanwhile is ended with the worker's tree.
func attributes(spec Spec) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: credential(spec.RunAs)}
}

// hideDescriptors keeps what the agent itself inherited from reaching the job;
// what Go opened is hidden anyway.
func hideDescriptors() error {
	const firstOwn = 3
	err := unix.CloseRange(firstOwn, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("hiding the agent's descriptors: %w", err)
	}
	// Before Linux 5.11, or filtered.
	return hideListed("/proc/self/fd")
}

// noCore keeps a crashing job from writing its memory, secrets included, to disk.
// It may raise the limit again, up to the agent's own.
func noCore(pid int) {
	var old unix.Rlimit
	if unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &old) == nil {
		_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: old.Max}, nil) // ended already: no core either
	}
}

// usage joins what the kernel counted for the tree with what it counted for the
// main process. The peak of a tree, where there is one, is better than the
// process's: that starts with the size of the agent, whose memory a child shares
// until it executes its program.
func usage(ps *os.ProcessState, tree proctree.Usage) Usage {
	u := Usage{CPUUser: tree.CPUUser, CPUSystem: tree.CPUSystem, MaxRSSBytes: tree.MemoryPeakBytes}
	if ps == nil {
		return u
	}
	if u.CPUUser+u.CPUSystem == 0 {
		u.CPUUser, u.CPUSystem = ps.UserTime(), ps.SystemTime()
	}
	if ru, ok := ps.SysUsage().(*syscall.Rusage); ok && u.MaxRSSBytes == 0 {
		u.MaxRSSBytes = ru.Maxrss << 10
	}
	return u
}
