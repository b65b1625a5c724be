package proctree

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bootID changes with every boot.
func bootID() string {
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return "unknown"
	}
	return strconv.FormatInt(tv.Sec, 10)
}

// now is the present in the unit of Process.Start: microseconds since 1970.
func now() uint64 { return uint64(time.Now().UnixMicro()) }

func self() Process {
	p, _ := identify(os.Getpid())
	return p
}

func identify(pid int) (Process, bool) {
	kp, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return Process{}, false
	}
	e := tableEntry(kp)
	return e.Process, e.PID == pid
}

func running(p Process) bool {
	kp, err := unix.SysctlKinfoProc("kern.proc.pid", p.PID)
	if err != nil {
		return false
	}
	e := tableEntry(kp)
	return e.Process == p && !e.zombie
}

// tableEntry takes the process group for the session: the table does not tell
// sessions, and Start makes both.
func tableEntry(kp *unix.KinfoProc) entry {
	const zombie = 5 // SZOMB
	start := kp.Proc.P_starttime
	return entry{
		Process: Process{PID: int(kp.Proc.P_pid), Start: uint64(start.Sec)*1_000_000 + uint64(start.Usec)},
		parent:  int(kp.Eproc.Ppid),
		session: int(kp.Eproc.Pgid),
		zombie:  kp.Proc.P_stat == zombie,
	}
}

func processTable() ([]entry, error) {
	kps, err := unix.SysctlKinfoProcSlice("kern.proc.all")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	table := make([]entry, len(kps))
	for i := range kps {
		table[i] = tableEntry(&kps[i])
	}
	return table, nil
}

// environValue reads one variable that a process was started with: behind its
// arguments, in the block that the system keeps of them.
func environValue(pid int, key string) (string, bool) {
	raw, err := unix.SysctlRaw("kern.procargs2", pid)
	if err != nil {
		return "", false
	}
	_, v, ok := bytes.Cut(raw, []byte("\x00"+key+"="))
	if !ok {
		return "", false
	}
	v, _, _ = bytes.Cut(v, []byte{0})
	return string(v), true
}

func send(p Process, sig syscall.Signal) error {
	if !running(p) {
		return errGone
	}
	if err := syscall.Kill(p.PID, sig); err != nil {
		if err == syscall.ESRCH {
			return errGone
		}
		return fmt.Errorf("sending %v to process %d: %w", sig, p.PID, err)
	}
	return nil
}

func waitExit(ctx context.Context, p Process) error { return pollExit(ctx, p) }
