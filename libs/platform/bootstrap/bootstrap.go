// Package bootstrap is what a provider hands to the agent that it starts: who it
// is, where it dials in, and what it may do on this machine. It travels once,
// through an inherited descriptor: the token in it never stands in an argument, in
// the environment or in a file.
package bootstrap

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"hodei.dev/libs/domain/fault"
)

// FD is the descriptor that an agent inherits its bootstrap on.
const FD = 3

// Flag is the agent's flag that names the descriptor.
const Flag = "bootstrap-fd"

// MaxBytes is the most that a bootstrap may have: less than a pipe holds, so that
// it is written before there is a reader.
const MaxBytes = 32 << 10

// Bootstrap is what one agent starts with.
type Bootstrap struct {
	// WorkerID is the worker that it is the agent of. Required.
	WorkerID string `json:"worker_id"`
	// Token registers it: single use, bound to the worker. Required.
	Token string `json:"token"`
	// AgentAddress is where it dials in: "host:port" or "unix:///path". Required.
	AgentAddress string `json:"agent_address"`
	// RunAs is the user that jobs run as; nil = the agent's own.
	RunAs *User `json:"run_as,omitempty"`
	// WorkDir is where it makes the private directories of its jobs: it exists, and
	// everybody may search but not list it. Required.
	WorkDir string `json:"work_dir"`
	// Limits are the worker's, as its provider reserved them.
	Limits Limits `json:"limits,omitzero"`
}

// User is who jobs run as.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Groups are the supplementary groups.
	Groups []uint32 `json:"groups,omitempty"`
	// Name is for USER and LOGNAME; empty = the number.
	Name string `json:"name,omitempty"`
	// Home is the user's home directory; empty = the job's own directory.
	Home string `json:"home,omitempty"`
}

// Limits bound the worker; 0 = none.
type Limits struct {
	CPUMillis   int64 `json:"cpu_millis,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// CPUEnforced and MemoryEnforced say which of them the kernel holds already.
	CPUEnforced    bool `json:"cpu_enforced,omitempty"`
	MemoryEnforced bool `json:"memory_enforced,omitempty"`
}

// Validate returns an Invalid error that names every required field that is empty.
func (b Bootstrap) Validate() error {
	var wrong fault.Fields
	for name, value := range map[string]string{
		"worker_id": b.WorkerID, "token": b.Token, "agent_address": b.AgentAddress, "work_dir": b.WorkDir,
	} {
		if value == "" {
			wrong.Add(name, "is required")
		}
	}
	return wrong.Err("the agent's bootstrap")
}

// LogValue leaves the token out of logs.
func (b Bootstrap) LogValue() slog.Value {
	return slog.GroupValue(slog.String("worker_id", b.WorkerID), slog.String("agent_address", b.AgentAddress),
		slog.String("work_dir", b.WorkDir))
}

// String leaves the token out of what is printed.
func (b Bootstrap) String() string {
	return fmt.Sprintf("bootstrap of worker %s at %s", b.WorkerID, b.AgentAddress)
}

// Write writes b as JSON. One that the reader would refuse is an Invalid error.
func Write(w io.Writer, b Bootstrap) error {
	if err := b.Validate(); err != nil {
		return err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("encode the agent's bootstrap: %w", err)
	}
	if len(data) > MaxBytes {
		return fault.New(fault.Invalid, "the agent's bootstrap has %d bytes, at most %d are read", len(data), MaxBytes)
	}
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write the agent's bootstrap: %w", err)
	}
	return nil
}

// Read reads the descriptor to its end and closes it, so that nothing that the
// agent starts inherits it. What is no complete bootstrap is an Invalid error.
func Read(fd int) (Bootstrap, error) {
	f := os.NewFile(uintptr(fd), "bootstrap")
	if f == nil {
		return Bootstrap{}, fault.New(fault.Invalid, "descriptor %d cannot hold the agent's bootstrap", fd)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return Bootstrap{}, fmt.Errorf("read the agent's bootstrap from descriptor %d: %w", fd, err)
	}
	var b Bootstrap
	if len(data) > MaxBytes {
		return b, fault.New(fault.Invalid, "the agent's bootstrap has more than %d bytes", MaxBytes)
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return Bootstrap{}, fault.New(fault.Invalid, "what descriptor %d holds is no bootstrap of an agent", fd)
	}
	return b, b.Validate()
}
