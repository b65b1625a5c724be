package proctree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// cpuPeriod is the window, in microseconds, that CPU limits are counted in: the
// kernel's default.
const cpuPeriod = 100_000

// addControllers adds the cgroups of version 1 that the limits need and version 2
// does not offer; true when there are new ones.
func (d *dirs) addControllers(p placement, l Limits) bool {
	dir, _ := d.holder()
	name := filepath.Base(dir)
	added := false
	for c, wanted := range map[string]bool{"memory": l.MemoryBytes > 0, "cpu": l.CPUMillis > 0, "pids": l.PIDs > 0} {
		if !wanted || d.V1[c] != "" || p.v1[c] == "" || d.Unified != "" && slices.Contains(p.granted, c) {
			continue
		}
		if d.V1 == nil {
			d.V1 = map[string]string{}
		}
		d.V1[c], added = filepath.Join(p.v1[c], name), true
	}
	return added
}

// limit writes the limits where there is a controller for them. A limit of zero
// lifts the one that was set before.
func (d dirs) limit(l Limits) (Enforced, error) {
	var e Enforced
	var errs [3]error
	if file := d.file("memory.max"); file != "" {
		errs[0] = errors.Join(writeFile(file, orMax(l.MemoryBytes)), d.noSwap(), d.killTogether())
		e.Memory = l.MemoryBytes > 0 && errs[0] == nil
	} else if dir := d.V1["memory"]; dir != "" {
		errs[0] = limitMemoryV1(dir, l.MemoryBytes)
		e.Memory = l.MemoryBytes > 0 && errs[0] == nil
	}
	quota := l.CPUMillis * cpuPeriod / 1000
	if file := d.file("cpu.max"); file != "" {
		errs[1] = writeFile(file, orMax(quota)+" "+strconv.Itoa(cpuPeriod))
		e.CPU = quota > 0 && errs[1] == nil
	} else if dir := d.V1["cpu"]; dir != "" {
		if quota == 0 {
			quota = -1
		}
		errs[1] = errors.Join(writeFile(filepath.Join(dir, "cpu.cfs_period_us"), strconv.Itoa(cpuPeriod)),
			writeFile(filepath.Join(dir, "cpu.cfs_quota_us"), strconv.FormatInt(quota, 10)))
		e.CPU = quota > 0 && errs[1] == nil
	}
	file := d.file("pids.max")
	if dir := d.V1["pids"]; file == "" && dir != "" {
		file = filepath.Join(dir, "pids.max")
	}
	if file != "" {
		errs[2] = writeFile(file, orMax(l.PIDs))
		e.PIDs = l.PIDs > 0 && errs[2] == nil
	}
	return e, errors.Join(errs[:]...)
}

// file returns the path of a control file of version 2, empty where there is none.
func (d dirs) file(name string) string {
	if d.Unified == "" {
		return ""
	}
	path := filepath.Join(d.Unified, name)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// noSwap makes the memory limit one of memory and swap together, so that it means
// the same in both versions.
func (d dirs) noSwap() error {
	if file := d.file("memory.swap.max"); file != "" {
		return writeFile(file, "0")
	}
	return nil
}

// killTogether ends the whole tree when it is out of memory: half a job is none.
func (d dirs) killTogether() error {
	if file := d.file("memory.oom.group"); file != "" {
		return writeFile(file, "1")
	}
	return nil
}

// limitMemoryV1 sets the limit of memory and, where swap is counted, of both
// together, which may never be the smaller one: the order depends on the direction.
func limitMemoryV1(dir string, bytes int64) error {
	value := strconv.FormatInt(bytes, 10)
	if bytes == 0 {
		value = "-1"
	}
	memory, both := filepath.Join(dir, "memory.limit_in_bytes"), filepath.Join(dir, "memory.memsw.limit_in_bytes")
	if _, err := os.Stat(both); err != nil {
		return writeFile(memory, value)
	}
	if writeFile(memory, value) == nil {
		return writeFile(both, value)
	}
	return errors.Join(writeFile(both, value), writeFile(memory, value))
}

func orMax(n int64) string {
	if n == 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// usage reads the counters of the cgroups there are.
func (d dirs) usage() Usage {
	var u Usage
	if file := d.file("cpu.stat"); file != "" {
		stat := keyed(file)
		u.CPUUser, u.CPUSystem = micros(stat["user_usec"]), micros(stat["system_usec"])
	} else if dir := d.V1["cpuacct"]; dir != "" {
		u.CPUUser = time.Duration(number(filepath.Join(dir, "cpuacct.usage_user")))
		u.CPUSystem = time.Duration(number(filepath.Join(dir, "cpuacct.usage_sys")))
	}
	if file := d.file("memory.peak"); file != "" { // since Linux 5.19
		u.MemoryPeakBytes = number(file)
	} else if dir := d.V1["memory"]; dir != "" {
		u.MemoryPeakBytes = number(filepath.Join(dir, "memory.max_usage_in_bytes"))
	}
	return u
}

// oomKilled reads the kernel's own count of kills.
func (d dirs) oomKilled() bool {
	if file := d.file("memory.events"); file != "" {
		return keyed(file)["oom_kill"] > 0
	}
	if dir := d.V1["memory"]; dir != "" {
		return keyed(filepath.Join(dir, "memory.oom_control"))["oom_kill"] > 0
	}
	return false
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }

// number reads a file that holds one number; 0 when it cannot.
func number(file string) int64 {
	w := words(file)
	if len(w) != 1 {
		return 0
	}
	n, err := strconv.ParseInt(w[0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyed reads a file of lines "key number".
func keyed(file string) map[string]int64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	out := map[string]int64{}
	for line := range strings.Lines(string(raw)) {
		var key string
		var n int64
		if _, err := fmt.Sscanf(line, "%s %d", &key, &n); err == nil {
			out[key] = n
		}
	}
	return out
}
