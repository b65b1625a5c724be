package dev

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"hodei.dev/libs/domain/fault"
)

// dataDir is everything that a platform keeps on disk. One process has it at a time.
type dataDir struct {
	path string
	lock *os.File
}

// DefaultDataDir is in the user's data home.
func DefaultDataDir() (string, error) {
	if home := os.Getenv("XDG_DATA_HOME"); home != "" {
		return filepath.Join(home, "hodei"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the data home: %w: give --data-dir", err)
	}
	return filepath.Join(home, ".local", "share", "hodei"), nil
}

// openData takes the directory, or says who has it.
func openData(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("resolve the data directory: %w", err)
	}
	// 0711: jobs of another user reach their own work directories below it, and can list nothing.
	if err := os.MkdirAll(path, 0o711); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "hodei.pid"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer lock.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data directory: %w", err)
		}
		holder, readErr := os.ReadFile(lock.Name())
		if readErr != nil {
			holder = []byte("unknown")
		}
		return nil, fault.New(fault.Precondition, "another hodei dev (process %s) uses %s", strings.TrimSpace(string(holder)), path).
			WithCode("DATA_DIR_IN_USE", "use that one, stop it, or give this one another --data-dir")
	}
	d := &dataDir{path: path, lock: lock}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, fmt.Sprintln(os.Getpid()))); err != nil {
		d.close()
		return nil, fmt.Errorf("write %s: %w", lock.Name(), err)
	}
	return d, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func (d *dataDir) sub(name string) string { return filepath.Join(d.path, name) }

// workersDir is where workers live: in the data directory, except where a
// directory above that is closed to other users (as /root is) while jobs run as
// another user, who could not reach it; then beside the system's own state, under
// a name that is this data directory's for ever.
func (d *dataDir) workersDir() string {
	if os.Geteuid() != 0 || searchable(d.path) {
		return d.sub("provisioner")
	}
	sum := sha256.Sum256([]byte(d.path))
	return filepath.Join("/var/lib/hodei", "dev-"+hex.EncodeToString(sum[:6]))
}

// searchable tells whether everybody may pass through the directory and all above it.
func searchable(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// close gives the directory back. The lock goes with the descriptor, so that a
// process that was killed holds nothing.
func (d *dataDir) close() { _ = d.lock.Close() }

// remembered is what must be the same after a restart, so that agents that have
// survived find their way back.
type remembered struct {
	AgentListen string `json:"agent_listen"`
}

// agentListen is where agents dial in: what was asked for, else what was
// remembered, else 7434 where the clients' door is the default too, else a free port.
func (d *dataDir) agentListen(asked string, defaultDoor bool) (string, error) {
	file := d.sub("ports.json")
	var r remembered
	if data, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(data, &r); err != nil {
			return "", fmt.Errorf("read %s: %w: remove the file", file, err)
		}
	}
	switch {
	case asked != "":
		r.AgentListen = asked
	case r.AgentListen != "":
	case defaultDoor:
		r.AgentListen = DefaultAgentListen
	default:
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", fmt.Errorf("find a free port for agents: %w", err)
		}
		r.AgentListen = l.Addr().String()
		if err := l.Close(); err != nil {
			return "", fmt.Errorf("find a free port for agents: %w", err)
		}
	}
	data, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return "", fmt.Errorf("remember the agents' port: %w", err)
	}
	return r.AgentListen, nil
}
