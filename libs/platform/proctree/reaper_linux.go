package proctree

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// reapOrphans makes this process the parent of every orphan below it, and takes
// the exit status of each, so that a long job leaves no zombies behind.
func (r *Root) reapOrphans() (stop func(), err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("becoming the parent of orphans: %w", err)
	}
	ended := make(chan os.Signal, 1) // one is enough: each look takes all there are
	signal.Notify(ended, syscall.SIGCHLD)
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case <-ended:
				r.reap()
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ended)
		close(quit)
	}, nil
}

// reap takes the exit status of all ended children that no tree started.
func (r *Root) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	children := map[int]bool{}
	for _, pid := range ownChildren() {
		children[pid] = true
		if _, ours := r.started[pid]; ours {
			continue
		}
		if e, ok := readStat(pid); ok && e.zombie {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
		}
	}
	for pid := range r.started {
		if !children[pid] { // waited for: the pid may come back as somebody else
			delete(r.started, pid)
		}
	}
}

// ownChildren lists the children of all threads of this process.
func ownChildren() []int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		raw, err := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
		if err != nil {
			return childrenByTable() // a kernel without that file
		}
		for f := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func childrenByTable() []int {
	table, err := processTable()
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range table {
		if e.parent == os.Getpid() {
			pids = append(pids, e.PID)
		}
	}
	return pids
}
