package proctree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"hodei.dev/libs/domain/fault"
)

// Config says where a root keeps its trees. The zero value is usable: trees that
// only this process can open.
type Config struct {
	// StateDir is where the trees are recorded, so that another process can open
	// them by name; made when absent. Two programs with the same StateDir see the
	// same trees. Default: none, the trees end with this process's memory of them.
	StateDir string
	// Mode forces a mode. Default: the best one that works.
	Mode Mode
	// Subreaper makes this process the parent of every orphan below it and reaps
	// them. Only for a program that starts children through this root and in no
	// other way: it takes the exit status of all others, and kills them with its
	// last tree. Without effect outside Linux.
	Subreaper bool
}

// Root is where one program keeps its trees. Safe for concurrent use.
type Root struct {
	cfg     Config
	caps    Capabilities
	place   placement
	hash    string // tells apart roots that share a cgroup
	boot    string
	prefix  string // id of the tree that this process itself is in, with a slash
	spawn   *spawner
	stopper func() // ends the reaper

	mu      sync.Mutex       // guards what follows; held while a child is being started or orphans are reaped
	started map[int]struct{} // with Subreaper: children whose exit status belongs to somebody
	trees   map[*Tree]struct{}
}

// NewRoot finds out what works on this machine. Where the calling process is
// alone in its cgroup, it may move itself into a leaf of it, because version 2
// allows limits on children only then. A forced mode that does not work is
// fault.Unavailable.
func NewRoot(cfg Config) (*Root, error) {
	r := &Root{cfg: cfg, boot: bootID(), started: map[int]struct{}{}, trees: map[*Tree]struct{}{}}
	seed := fmt.Sprintf("process %d %v", os.Getpid(), self())
	if cfg.StateDir != "" {
		abs, err := filepath.Abs(cfg.StateDir)
		if err != nil {
			return nil, fmt.Errorf("resolving the state directory of process trees: %w", err)
		}
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("making the state directory of process trees: %w", err)
		}
		r.cfg.StateDir, seed = abs, abs
	}
	sum := sha256.Sum256([]byte(seed))
	r.hash = hex.EncodeToString(sum[:4])
	if outer := os.Getenv(MarkerEnv); outer != "" {
		r.prefix = outer + "/"
	}
	var err error
	if r.place, r.caps, err = findPlacement(cfg.Mode); err != nil {
		return nil, err
	}
	if cfg.Subreaper {
		if r.stopper, err = r.reapOrphans(); err != nil {
			return nil, err
		}
	}
	r.spawn = newSpawner(r.place)
	return r, nil
}

// Capabilities says what this root can do.
func (r *Root) Capabilities() Capabilities { return r.caps }

// Close ends the thread that starts processes, and the reaping of orphans. Trees
// stay as they are, but a child that asked for a parent-death signal gets it now.
func (r *Root) Close() {
	r.spawn.close()
	if r.stopper != nil {
		r.stopper()
	}
}

// List names the recorded trees, in order. Empty without a StateDir.
func (r *Root) List() ([]string, error) {
	if r.cfg.StateDir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(r.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("listing process trees: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), stateSuffix); ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names, nil
}

// Open returns the tree of that name and makes it if there is none. A recorded
// tree keeps the mode and the place that it was made with. A name is up to 150
// letters, digits, dots, dashes and underscores, else fault.Invalid.
func (r *Root) Open(name string) (*Tree, error) {
	if !validName(name) {
		return nil, fault.New(fault.Invalid, "process tree name %q: use letters, digits, '.', '-' and '_', at most 150", name)
	}
	t := &Tree{root: r, name: name}
	if r.cfg.StateDir != "" {
		t.file = filepath.Join(r.cfg.StateDir, name+stateSuffix)
		found, err := t.load()
		if err != nil {
			return nil, err
		}
		if found {
			t.reopened = true
			r.opened(t)
			return t, nil
		}
	}
	t.st = state{ID: r.prefix + r.hash + "." + name, Mode: r.caps.Mode, Boot: r.boot, Since: now()}
	if t.st.Mode != Groups {
		t.st.Dirs = r.place.newTree(inside(strings.TrimSuffix(r.prefix, "/")) + r.hash + "-" + name)
	}
	// The record comes first: a tree that nobody remembers would be for ever.
	if err := t.save(); err != nil {
		return nil, err
	}
	if err := t.st.Dirs.create(); err != nil {
		return nil, fmt.Errorf("making process tree %s: %w", name, err)
	}
	r.opened(t)
	return t, nil
}

func (r *Root) opened(t *Tree) {
	r.mu.Lock()
	r.trees[t] = struct{}{}
	r.mu.Unlock()
}

func (r *Root) closed(t *Tree) {
	r.mu.Lock()
	delete(r.trees, t)
	r.mu.Unlock()
}

// adopted tells which children of this process can only come from t: orphans,
// while t is the only tree there is. Nil where this process adopts nobody. With
// several trees an orphan without other evidence waits for the last of them.
func (r *Root) adopted(t *Tree) func(entry) bool {
	if r.stopper == nil {
		return nil
	}
	r.mu.Lock()
	_, open := r.trees[t]
	only := open && len(r.trees) == 1
	started := maps.Clone(r.started)
	r.mu.Unlock()
	if !only {
		return nil
	}
	return func(e entry) bool {
		_, ours := started[e.PID]
		return e.parent == os.Getpid() && !ours
	}
}

// inside begins the cgroup names of the trees inside a tree, by whose id they can
// be found in hierarchies where they are beside it and not below.
func inside(id string) string {
	if id == "" {
		return "hodei-"
	}
	sum := sha256.Sum256([]byte(id))
	return "hodei-" + hex.EncodeToString(sum[:4]) + "."
}

func validName(s string) bool {
	if s == "" || len(s) > 150 || s[0] == '.' {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
