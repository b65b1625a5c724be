package proctree

import (
	"errors"
	"fmt"
	"time"
)

// MarkerEnv is the environment variable that every process of a tree is started
// with: the tree's id. Trees nest: the id of an inner tree begins with the outer
// one's and a slash.
const MarkerEnv = "HODEI_TREE"

// MinMemoryBytes is the smallest memory limit that is accepted: below it a
// program may not even get as far as its first instruction.
const MinMemoryBytes = 4 << 20

// Mode is how a tree is held together.
type Mode string

// The modes, best first. Auto takes the best one that works here.
const (
	Auto    Mode = ""
	Cgroup2 Mode = "cgroup2"
	Cgroup1 Mode = "cgroup1"
	Groups  Mode = "groups"
)

// Capabilities is what a root can do on this machine.
type Capabilities struct {
	// Mode is how its trees are held together.
	Mode Mode
	// Memory, CPU and PIDs say which limits are enforced.
	Memory, CPU, PIDs bool
	// Reason says, for people, why the mode is not a better one; may be empty.
	Reason string
}

// Limits bound a tree as a whole. Zero means no limit.
type Limits struct {
	// MemoryBytes bounds memory, swap included; at least MinMemoryBytes.
	MemoryBytes int64
	// CPUMillis is CPU time per wall time in thousandths of a core; at least 10.
	CPUMillis int64
	// PIDs is the number of processes and threads; at least 2.
	PIDs int64
}

// Enforced says which of the limits asked for the kernel enforces. One that was
// not asked for is false.
type Enforced struct{ Memory, CPU, PIDs bool }

// Usage is what a tree has used since it was made. Zero means unknown: in groups
// mode everything is, and MemoryPeakBytes where no memory cgroup is in use.
type Usage struct {
	// CPUUser and CPUSystem are of all processes, also those that have ended.
	CPUUser, CPUSystem time.Duration
	// MemoryPeakBytes is the most memory held at one time, page cache included.
	MemoryPeakBytes int64
}

// Process identifies a process for ever: pids are recycled, pairs of pid and
// start time are not.
type Process struct {
	// PID is the process id.
	PID int `json:"pid"`
	// Start is when it started, in the kernel's own unit.
	Start uint64 `json:"start"`
}

// LeftoverError is what Kill returns when its context ended first.
type LeftoverError struct {
	// Tree is the tree's name.
	Tree string
	// Left are the processes that are still there.
	Left []Process
	// Err is why waiting ended.
	Err error
}

// Error names what is left.
func (e *LeftoverError) Error() string {
	pids := make([]int, len(e.Left))
	for i, p := range e.Left {
		pids[i] = p.PID
	}
	return fmt.Sprintf("process tree %s still has %d processes %v: %v", e.Tree, len(pids), pids, e.Err)
}

// Unwrap returns why waiting ended.
func (e *LeftoverError) Unwrap() error { return e.Err }

// errGone means that a process has ended, or that its pid is somebody else's now.
var errGone = errors.New("the process is gone")
