package proctree

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
)

// entry is one line of the process table.
type entry struct {
	Process
	parent, session int
	zombie          bool
}

// members finds the living processes of a tree without a cgroup: what was
// started, everything below it, every session whose leader is one of them, and
// whatever carries the marker. own says that this process made the tree; orphan
// tells what this process adopted and no other tree claims, and may be nil.
func members(st state, own bool, orphan func(entry) bool) ([]Process, error) {
	table, err := processTable()
	if err != nil {
		return nil, err
	}
	byPID := make(map[int]entry, len(table))
	for _, e := range table {
		byPID[e.PID] = e
	}
	started := make(map[int]uint64, len(st.Started))
	for _, p := range st.Started {
		started[p.PID] = p.Start
	}
	in := map[int]bool{}
	for _, e := range table {
		if !e.zombie && e.Start >= st.Since &&
			(seed(st, e, byPID, started, own) || orphan != nil && orphan(e)) {
			in[e.PID] = true
		}
	}
	for grew := true; grew; {
		grew = false
		for _, e := range table {
			if !in[e.PID] && e.Start >= st.Since && (in[e.parent] || in[e.session]) {
				in[e.PID], grew = true, true
			}
		}
	}
	for pid := os.Getpid(); pid > 0; pid = byPID[pid].parent {
		delete(in, pid) // never this process or what it hangs from
	}
	var out []Process
	for _, e := range table {
		if in[e.PID] && !e.zombie {
			out = append(out, e.Process)
		}
	}
	return out, nil
}

// seed says whether a process belongs to the tree by itself.
func seed(st state, e entry, byPID map[int]entry, started map[int]uint64, own bool) bool {
	if start, ok := started[e.PID]; ok && start == e.Start {
		return true
	}
	if marked(e.PID, st.ID) {
		return true
	}
	start, ok := started[e.session]
	if !ok || e.Start < start {
		return false
	}
	if leader, alive := byPID[e.session]; alive {
		return leader.Start == start
	}
	// The leader is gone. Its number cannot have been given away while the session
	// had members, but after that it may have led another session that lost its
	// leader, too; only who saw it start can rule that out.
	return own
}

// marked says whether a process was started with the marker of the tree, or of
// one inside it.
func marked(pid int, id string) bool {
	v, ok := environValue(pid, MarkerEnv)
	return ok && (v == id || strings.HasPrefix(v, id+"/"))
}

// signalAll signals each process that is still the one meant.
func signalAll(ps []Process, sig syscall.Signal) error {
	var errs []error
	for _, p := range ps {
		if err := send(p, sig); err != nil && !errors.Is(err, errGone) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// waitAll returns when all of the processes have ended.
func waitAll(ctx context.Context, ps []Process) error {
	for _, p := range ps {
		if err := waitExit(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
