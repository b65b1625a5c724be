package proctree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const stateSuffix = ".tree.json"

// state is what is remembered of a tree, in memory and in its file.
type state struct {
	// ID is the value of the marker in the environment of its processes.
	ID   string `json:"id"`
	Mode Mode   `json:"mode"`
	// Boot tells whether pids and cgroups still mean anything.
	Boot string `json:"boot"`
	// Since is when the tree was made: no older process belongs to it.
	Since uint64 `json:"since"`
	// Dirs are its cgroups; none in groups mode.
	Dirs dirs `json:"dirs"`
	// Started are the processes started in it, each the leader of its session.
	// The last one is the main process.
	Started []Process `json:"started,omitempty"`
}

// load reads the tree's file. A damaged record and one of an earlier boot count as
// none.
func (t *Tree) load() (bool, error) {
	raw, err := os.ReadFile(t.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the record of process tree %s: %w", t.name, err)
	}
	var st state
	// A record is replaced as a whole, so only a crash of the machine damages one.
	if json.Unmarshal(raw, &st) != nil || st.Boot != t.root.boot {
		return false, nil
	}
	t.st = st
	if err := t.st.Dirs.create(); err != nil {
		return false, fmt.Errorf("opening process tree %s: %w", t.name, err)
	}
	return true, nil
}

// save writes the tree's file so that a reader sees the old record or the new one.
func (t *Tree) save() error {
	if t.file == "" {
		return nil
	}
	raw, err := json.Marshal(t.st)
	if err != nil {
		return fmt.Errorf("encoding the record of process tree %s: %w", t.name, err)
	}
	tmp := filepath.Join(filepath.Dir(t.file), "."+filepath.Base(t.file)+".new")
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("recording process tree %s: %w", t.name, err)
	}
	if err := os.Rename(tmp, t.file); err != nil {
		return fmt.Errorf("recording process tree %s: %w", t.name, err)
	}
	return nil
}
