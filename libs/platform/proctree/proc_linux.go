package proctree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootID changes with every boot: pids, start times and cgroups of another boot
// mean nothing.
func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(raw))
}

// now is the present in the unit of Process.Start, rounded down.
func now() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // older than every process: nothing is excluded
	}
	const ticksPerSecond = 100 // USER_HZ, part of the kernel's ABI
	return uint64(ts.Nano()) / uint64(time.Second/ticksPerSecond)
}

// self identifies the calling process.
func self() Process {
	p, _ := identify(os.Getpid())
	return p
}

// identify returns the process that has the pid now, zombies included.
func identify(pid int) (Process, bool) {
	e, ok := readStat(pid)
	return e.Process, ok
}

// running says whether exactly this process is there and is not a zombie.
func running(p Process) bool {
	e, ok := readStat(p.PID)
	return ok && e.Process == p && !e.zombie
}

// readStat parses /proc/PID/stat. The name in it may hold anything, so fields
// are counted from its last parenthesis.
func readStat(pid int) (entry, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return entry{}, false
	}
	i := bytes.LastIndexByte(raw, ')')
	if i < 0 {
		return entry{}, false
	}
	const state, parent, session, start = 0, 1, 3, 19
	f := strings.Fields(string(raw[i+1:]))
	if len(f) <= start {
		return entry{}, false
	}
	e := entry{Process: Process{PID: pid}, zombie: f[state] == "Z" || f[state] == "X"}
	var errs [3]error
	e.parent, errs[0] = strconv.Atoi(f[parent])
	e.session, errs[1] = strconv.Atoi(f[session])
	e.Start, errs[2] = strconv.ParseUint(f[start], 10, 64)
	return e, errors.Join(errs[:]...) == nil
}

// processTable lists every process of this pid namespace.
func processTable() ([]entry, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var table []entry
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if e, ok := readStat(pid); ok { // else it has ended meanwhile
			table = append(table, e)
		}
	}
	return table, nil
}

// environValue reads one variable that a process was started with.
func environValue(pid int, key string) (string, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return "", false
	}
	prefix := []byte(key + "=")
	for kv := range bytes.SplitSeq(raw, []byte{0}) {
		if v, ok := bytes.CutPrefix(kv, prefix); ok {
			return string(v), true
		}
	}
	return "", false
}

// send signals exactly this process, or returns errGone.
func send(p Process, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return errGone
	case err != nil: // before Linux 5.3, or forbidden: the check is all there is
		if !running(p) {
			return errGone
		}
		err = syscall.Kill(p.PID, sig)
	default:
		defer unix.Close(fd)
		if !running(p) { // the descriptor now keeps the pid from being somebody else
			return errGone
		}
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) {
		return errGone
	}
	if err != nil {
		return fmt.Errorf("sending %v to process %d: %w", sig, p.PID, err)
	}
	return nil
}

// waitExit returns when the process has ended (a zombie has), or with ctx's error.
func waitExit(ctx context.Context, p Process) error {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return pollExit(ctx, p) // no pidfd here
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	if !running(p) {
		return nil
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return pollExit(ctx, p)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = conn.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		return err == nil && n > 0
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return pollExit(ctx, p)
}
