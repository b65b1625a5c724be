package bootstrap_test

import (
	"os"
	"syscall"
)

// dup returns a descriptor that Read may close without the file's knowledge.
func dup(f *os.File) (int, error) { return syscall.Dup(int(f.Fd())) }
