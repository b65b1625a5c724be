package run

import (
	"os"
	"syscall"

	"hodei.dev/libs/platform/proctree"
)

// attributes are how the kernel is to start the job.
func attributes(spec Spec) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: credential(spec.RunAs)}
}

// hideDescriptors keeps what the agent itself inherited from reaching the job.
func hideDescriptors() error { return hideListed("/dev/fd") }

// noCore does nothing: the limit of another process cannot be set here, and core
// files are off by default.
func noCore(int) {}

// usage is that of the main process: there are no cgroups to count the rest.
func usage(ps *os.ProcessState, _ proctree.Usage) Usage {
	if ps == nil {
		return Usage{}
	}
	u := Usage{CPUUser: ps.UserTime(), CPUSystem: ps.SystemTime()}
	if ru, ok := ps.SysUsage().(*syscall.Rusage); ok {
		u.MaxRSSBytes = ru.Maxrss
	}
	return u
}
