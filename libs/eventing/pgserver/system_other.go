//go:build !linux

package pgserver

import "syscall"

const inheritedDir = "/dev/fd/3"

func bindToParent(*syscall.SysProcAttr) {}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

// runsIn cannot be told here; postmaster.pid is believed.
func runsIn(int, string) bool { return true }
