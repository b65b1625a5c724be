package proctree

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirs are the cgroups of one tree.
type dirs struct {
	// Unified is its cgroup of version 2; empty: none.
	Unified string `json:"unified,omitempty"`
	// V1 are its cgroups of version 1, by controller.
	V1 map[string]string `json:"v1,omitempty"`
}

// newTree names the cgroups of a new tree; only what holds it together and counts
// its CPU time, limits are added when they are asked for.
func (p placement) newTree(name string) dirs {
	if p.unified != "" {
		return dirs{Unified: filepath.Join(p.unified, name)}
	}
	d := dirs{V1: map[string]string{}}
	for _, c := range v1Controllers {
		if parent := p.v1[c]; parent != "" && (len(d.V1) == 0 || c == "cpuacct") {
			d.V1[c] = filepath.Join(parent, name)
		}
	}
	return d
}

func (d dirs) clone() dirs { return dirs{Unified: d.Unified, V1: maps.Clone(d.V1)} }

// holder is the cgroup that decides who is in the tree, and its hierarchy's name.
func (d dirs) holder() (dir, hierarchy string) {
	if d.Unified != "" {
		return d.Unified, ""
	}
	for _, c := range v1Controllers {
		if d.V1[c] != "" {
			return d.V1[c], c
		}
	}
	return "", ""
}

// all lists every directory once: controllers may be mounted together.
func (d dirs) all() []string {
	out := slices.Collect(maps.Values(d.V1))
	if d.Unified != "" {
		out = append(out, d.Unified)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// create makes what is missing.
func (d dirs) create() error {
	for _, dir := range d.all() {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// remove removes the cgroups and whatever empty ones are below them. A process
// that has just ended may keep its cgroup busy for a moment longer.
func (d dirs) remove() error {
	for _, dir := range d.all() {
		err := removeCgroup(dir)
		for wait := time.Millisecond; errors.Is(err, unix.EBUSY) && wait < 2*time.Second; wait *= 2 {
			time.Sleep(wait)
			err = removeCgroup(dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	children, _ := subdirs(dir)
	for _, c := range children {
		if err := removeCgroup(c); err != nil {
			return err
		}
	}
	if len(children) > 0 {
		err = unix.Rmdir(dir)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}

// sweep removes empty cgroups of version 1 by the beginning of their names. One
// that is not empty, or not ours to remove, stays.
func (p placement) sweep(prefix string) {
	for _, parent := range p.v1 {
		children, _ := subdirs(parent)
		for _, c := range children {
			if strings.HasPrefix(filepath.Base(c), prefix) {
				_ = removeCgroup(c)
			}
		}
	}
}

func subdirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, err
}

// processes lists the living members, those of nested trees included.
func (d dirs) processes() ([]Process, error) {
	dir, hierarchy := d.holder()
	if hierarchy == "" && !populated(dir) {
		return nil, nil
	}
	pids, err := pidsBelow(dir)
	if err != nil {
		return nil, err
	}
	if len(pids) == 0 {
		return nil, nil
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	me := os.Getpid()
	var out []Process
	for _, pid := range pids {
		e, ok := readStat(pid)
		if !ok || e.zombie || pid == me {
			continue
		}
		// Version 1 lists a process of which only one thread is here, and a pid may
		// have changed hands since it was listed: ask the process itself.
		if own, err := cgroupsOf(pid, mounts); err != nil || !within(own[hierarchy], dir) {
			continue
		}
		out = append(out, e.Process)
	}
	return out, nil
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func populated(dir string) bool {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return err != nil || !strings.Contains(string(raw), "populated 0")
}

func pidsBelow(dir string) ([]int, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(string(raw)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 { // 0: in another pid namespace
			pids = append(pids, pid)
		}
	}
	children, err := subdirs(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, c := range children {
		more, err := pidsBelow(c)
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// killAll lets the kernel kill the tree as a whole; false where it cannot.
func (d dirs) killAll() (bool, error) {
	if d.Unified == "" {
		return false, nil
	}
	err := writeFile(filepath.Join(d.Unified, "cgroup.kill"), "1") // since Linux 5.14
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// freeze holds the tree still, where there is a freezer, until thaw is called. A
// tree that does not freeze in time is killed unfrozen, round after round.
func (d dirs) freeze() (thaw func()) {
	file, on, off, ready := filepath.Join(d.Unified, "cgroup.freeze"), "1", "0", func() bool {
		raw, err := os.ReadFile(filepath.Join(d.Unified, "cgroup.events"))
		return err != nil || strings.Contains(string(raw), "frozen 1")
	}
	if d.Unified == "" {
		if d.V1["freezer"] == "" {
			return func() {}
		}
		file, on, off = filepath.Join(d.V1["freezer"], "freezer.state"), "FROZEN", "THAWED"
		ready = func() bool {
			raw, err := os.ReadFile(file)
			return err != nil || strings.HasPrefix(string(raw), "FROZEN")
		}
	}
	if writeFile(file, on) != nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	for tick := time.NewTicker(time.Millisecond); !ready() && ctx.Err() == nil; {
		<-tick.C
	}
	return func() { _ = writeFile(file, off) }
}

// onMainThread says whether the calling thread is the one that stands for the
// process.
func onMainThread() bool { return unix.Gettid() == unix.Getpid() }

// prepareThread gives the calling thread a umask of its own. Where that is
// forbidden (some containers) children have the process's umask.
func prepareThread() {
	if unix.Unshare(unix.CLONE_FS) == nil {
		unix.Umask(0o022)
	}
}

// startInside starts cmd in the tree's cgroups: in that of version 2 by clone3, in
// those of version 1 because the calling thread, alone, joins them for as long as
// it forks. (A thread that moves itself takes no global lock: microseconds.)
func startInside(cmd *exec.Cmd, in dirs, home placement) (err error) {
	if in.Unified != "" {
		fd, err := unix.Open(in.Unified, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: in.Unified, Err: err}
		}
		defer unix.Close(fd)
		attr := *cmd.SysProcAttr
		attr.UseCgroupFD, attr.CgroupFD = true, fd
		cmd.SysProcAttr = &attr
		defer func() { cmd.SysProcAttr.UseCgroupFD = false }()
	}
	defer func() {
		for c := range in.V1 {
			if back := moveThread(home.home[c]); back != nil && err == nil {
				err = errors.Join(back, cmd.Process.Kill(), cmd.Wait())
			}
		}
	}()
	for _, dir := range in.V1 {
		if err := moveThread(dir); err != nil {
			return err
		}
	}
	return cmd.Start()
}

// moveThread moves the calling thread to a cgroup of version 1.
func moveThread(dir string) error { return writeFile(filepath.Join(dir, "tasks"), "0") }
