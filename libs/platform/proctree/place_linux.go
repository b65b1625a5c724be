package proctree

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hodei.dev/libs/domain/fault"
)

// selfLeaf is the cgroup that a process moves itself to, so that its own cgroup
// may hand controllers to children.
const selfLeaf = "hodei-self"

// v1Controllers are those that a tree has use for, in the order of fitness to
// hold it together.
var v1Controllers = [...]string{"freezer", "pids", "memory", "cpuacct", "cpu"}

// v2Controllers are those that limits need.
var v2Controllers = [...]string{"memory", "cpu", "pids"}

// placement is where this process may make cgroups: one directory for each
// hierarchy.
type placement struct {
	mode    Mode
	unified string            // parent of new cgroups of version 2; empty: none
	granted []string          // controllers that children of unified have
	v1      map[string]string // controller -> parent, where it may be written
	home    map[string]string // controller -> where this process itself is
}

// findPlacement finds out what works, by trying.
func findPlacement(want Mode) (placement, Capabilities, error) {
	p := placement{v1: map[string]string{}, home: map[string]string{}}
	caps := Capabilities{Mode: Groups}
	own, err := ownCgroups()
	if err != nil {
		caps.Reason = err.Error()
	}
	var reasons []string
	if dir := own[""]; dir != "" && want != Groups && want != Cgroup1 {
		if p.unified, p.granted, err = usableUnified(dir); err != nil {
			reasons = append(reasons, err.Error())
		}
	}
	if want != Groups {
		for _, c := range v1Controllers {
			dir := own[c]
			if dir == "" {
				continue
			}
			if err := tryDir(dir); err != nil {
				reasons = append(reasons, err.Error())
				continue
			}
			p.v1[c], p.home[c] = dir, dir
		}
	}
	switch {
	case p.unified != "":
		p.mode = Cgroup2
	case len(p.v1) > 0 && want != Cgroup2:
		p.mode = Cgroup1
	default:
		p.mode = Groups
	}
	if want != Auto && want != p.mode {
		return p, caps, fault.New(fault.Unavailable, "process trees of mode %s do not work here: %s", want, strings.Join(reasons, "; ")).
			WithCode("NO_CGROUP", "let the mode be chosen, or give this process a cgroup that it may write")
	}
	caps.Mode = p.mode
	has := func(c string) bool { return p.mode != Groups && (p.v1[c] != "" || slices.Contains(p.granted, c)) }
	caps.Memory, caps.CPU, caps.PIDs = has("memory"), has("cpu"), has("pids")
	if p.mode == Groups {
		if len(reasons) > 0 {
			caps.Reason = strings.Join(reasons, "; ")
		} else if caps.Reason == "" && want == Auto {
			caps.Reason = "no cgroup file system is mounted"
		}
	}
	return p, caps, nil
}

// ownCgroups maps each controller to the directory of this process's cgroup; the
// empty name is the unified hierarchy.
func ownCgroups() (map[string]string, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	return cgroupsOf(os.Getpid(), mounts)
}

// cgroupsOf reads where a process is, as directories in this mount namespace.
func cgroupsOf(pid int, mounts map[string]cgroupMount) (map[string]string, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading the cgroups of process %d: %w", pid, err)
	}
	own := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			if m, ok := mounts[c]; ok {
				own[c] = m.dir(f[2])
			}
		}
	}
	return own, nil
}

// cgroupMount is one mounted hierarchy.
type cgroupMount struct{ point, root string }

// dir maps a path of /proc/PID/cgroup to a directory. A container without a
// cgroup namespace sees the host's path, but has only its own part mounted.
func (m cgroupMount) dir(path string) string {
	if rel, ok := strings.CutPrefix(path, strings.TrimSuffix(m.root, "/")); ok && (rel == "" || rel[0] == '/') {
		path = rel
	}
	return filepath.Join(m.point, path)
}

// cgroupMounts reads the mounted hierarchies by controller.
func cgroupMounts() (map[string]cgroupMount, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	mounts := map[string]cgroupMount{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		pre, post := strings.Fields(before), strings.Fields(after)
		if !ok || len(pre) < 6 || len(post) < 3 {
			continue
		}
		m := cgroupMount{point: unescape(pre[4]), root: unescape(pre[3])}
		switch post[0] {
		case "cgroup2":
			mounts[""] = m
		case "cgroup":
			for opt := range strings.SplitSeq(post[2], ",") {
				if slices.Contains(v1Controllers[:], opt) {
					mounts[opt] = m
				}
			}
		}
	}
	return mounts, nil
}

// unescape undoes the octal escapes of the mount table.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// tryDir finds out whether children may be made in a cgroup and processes moved.
func tryDir(dir string) error {
	if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
		return fmt.Errorf("%s may not be written: %w", dir, err)
	}
	probe, err := os.MkdirTemp(dir, "hodei-probe-")
	if err != nil {
		return fmt.Errorf("%s may not be written: %w", dir, err)
	}
	return os.Remove(probe)
}

// usableUnified returns where new cgroups of version 2 go, and their controllers.
func usableUnified(own string) (parent string, granted []string, err error) {
	if filepath.Base(own) == selfLeaf {
		own = filepath.Dir(own)
	}
	if err := tryDir(own); err != nil {
		return "", nil, err
	}
	kind, err := os.ReadFile(filepath.Join(own, "cgroup.type")) // the root has none
	if err == nil && strings.TrimSpace(string(kind)) != "domain" {
		return "", nil, fmt.Errorf("%s is a cgroup of threads", own)
	}
	available := words(filepath.Join(own, "cgroup.controllers"))
	for _, c := range v2Controllers {
		if slices.Contains(available, c) && grant(own, c) == nil {
			granted = append(granted, c)
		}
	}
	return own, granted, nil
}

// grant gives a controller to the children of a cgroup. A cgroup with processes
// of its own may not: if that is this one alone, it moves to a leaf.
func grant(own, controller string) error {
	control := filepath.Join(own, "cgroup.subtree_control")
	if slices.Contains(words(control), controller) {
		return nil
	}
	err := writeFile(control, "+"+controller)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	me := strconv.Itoa(os.Getpid())
	if inside := words(filepath.Join(own, "cgroup.procs")); len(inside) != 1 || inside[0] != me {
		return err
	}
	leaf := filepath.Join(own, selfLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := writeFile(filepath.Join(leaf, "cgroup.procs"), me); err != nil {
		return err
	}
	return writeFile(control, "+"+controller)
}

func words(file string) []string {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(raw))
}

// writeFile writes a control file: never creates, one write.
func writeFile(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
