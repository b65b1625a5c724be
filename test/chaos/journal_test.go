package main

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// Plans start side by side in one process, under a umask that is not theirs.
func TestEveryUserMayWriteEveryJournal(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir, plans := t.TempDir(), 64
	var work sync.WaitGroup
	for n := range plans {
		work.Go(func() {
			if _, err := newJournal(filepath.Join(dir, strconv.Itoa(n))); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	for n := range plans {
		for name, want := range map[string]os.FileMode{"": 0o777, "locks": 0o777, "entries": 0o666} {
			info, err := os.Stat(filepath.Join(dir, strconv.Itoa(n), name))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%d/%s has mode %o, want %o", n, name, got, want)
			}
		}
	}
}
