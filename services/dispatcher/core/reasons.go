package core

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// candidates records every provider that was looked at for a job, and why chosen was taken.
func (s *State) candidates(j *jobEntry, chosen *providerEntry) (out []worker.Candidate, why string) {
	why = fmt.Sprintf("the most room: %d of %d workers exist", chosen.workers+chosen.slots, chosen.Spec.MaxWorkers) + s.instead(j, chosen)
	if chosen.preferred(j) {
		why = fmt.Sprintf("preferred, and has room: %d of %d workers exist", chosen.workers+chosen.slots, chosen.Spec.MaxWorkers)
	}
	for _, p := range s.byName {
		if p.State != provider.StateEnabled || !p.named(j.Spec.Placement.Provider) {
			continue
		}
		v := p.look(j)
		c := worker.Candidate{ProviderID: p.ID, ProviderName: p.Spec.Name, Fits: v == hasRoom}
		switch {
		case p == chosen:
			c.Reason = why
		case v == hasRoom && chosen.preferred(j):
			c.Reason = "fits, but the job prefers " + chosen.Spec.Name
		case v == hasRoom:
			c.Reason = fmt.Sprintf("fits, but no more room than %s: %d of %d workers exist", chosen.Spec.Name, p.workers+p.slots, p.Spec.MaxWorkers)
		default:
			c.Reason = p.words(v, &j.Spec)
		}
		out = append(out, c)
	}
	return out, why
}

// instead says why the provider that the job prefers is not the chosen one; empty
// where it is, where none is preferred, or where it had room for a worker that the
// job no longer needs.
func (s *State) instead(j *jobEntry, chosen *providerEntry) string {
	want := j.Spec.Placement.PreferredProvider
	if want == "" || chosen.preferred(j) {
		return ""
	}
	for _, p := range s.byName {
		if !p.preferred(j) {
			continue
		}
		if v := p.look(j); v != hasRoom {
			return "; preferred provider " + p.Spec.Name + ": " + p.words(v, &j.Spec)
		}
		return ""
	}
	return "; there is no preferred provider " + strconv.Quote(want)
}

// impossible says, provider by provider, why nothing can run the shape as things
// are; nil where something can, now or once there is room. The reasons stay the same
// while a circuit is open, however often it is probed.
func (s *State) impossible(sh *shape) []string {
	want := sh.key.provider
	if s.cut {
		return []string{"no worker can be reached, for the circuits of all registry replicas are open: see `hodei status`"}
	}
	probe := &jobEntry{Job: job.Job{Spec: job.Spec{Resources: sh.key.res, Placement: sh.placement}}}
	var reasons []string
	for _, p := range s.byName {
		if !p.named(want) || want == "" && p.State != provider.StateEnabled {
			continue
		}
		v := p.look(probe)
		if v == workersFull && s.stranded(p) {
			v = strandedAll
		}
		if !v.hopeless() {
			return nil
		}
		reasons = append(reasons, "provider "+p.Spec.Name+": "+p.words(v, &probe.Spec))
	}
	switch {
	case len(reasons) > 0:
		return reasons
	case want != "":
		return []string{"there is no provider " + strconv.Quote(want) + ": see `hodei provider list`"}
	default:
		return []string{"there is no provider: register one with `hodei provider register`"}
	}
}

// words says what a look found.
func (p *providerEntry) words(v verdict, spec *job.Spec) string {
	switch v {
	case hasRoom:
		return "fits"
	case workersFull:
		return fmt.Sprintf("all of its %d workers exist", p.Spec.MaxWorkers)
	case resourcesFull:
		return lacks(spec.Resources, p.left(), "left")
	case operatorBusy:
		return "its workers are started by its operator, and none that fits is idle"
	case removed:
		return "removed"
	case unlabelled:
		return p.missing(spec.Placement.RequiredLabels)
	case tooSmall:
		return lacks(spec.Resources, p.capacity(), "in all")
	case unhealthy:
		if p.HealthReason == "" {
			return "unhealthy"
		}
		return "unhealthy: " + p.HealthReason
	case circuitOpen:
		return "its circuit is open, for it failed to make workers: see `hodei provider get " + p.Spec.Name + "`"
	case strandedAll:
		return "all of its workers exist, and those that are idle cannot be reached: see `hodei status`"
	case operatorAway:
		return "it has no workers, and its operator starts them: see `hodei worker token`"
	}
	return "unknown"
}

// missing names the labels that are required and not there.
func (p *providerEntry) missing(required map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(required)) {
		if has, ok := p.Spec.Labels[k]; !ok {
			out = append(out, "has no label "+k)
		} else if has != required[k] {
			out = append(out, fmt.Sprintf("label %s is %q and not %q", k, has, required[k]))
		}
	}
	return strings.Join(out, "; ")
}

// left is what may still be reserved; 0 stays "no limit", so that nothing left is 1 below.
func (p *providerEntry) left() job.Resources {
	left := p.capacity()
	if left.CPUMillis > 0 {
		left.CPUMillis = max(left.CPUMillis-p.reserved.CPUMillis, -1)
	}
	if left.MemoryBytes > 0 {
		left.MemoryBytes = max(left.MemoryBytes-p.reserved.MemoryBytes, -1)
	}
	if left.CPUMillis == 0 && p.Spec.CPUMillis > 0 {
		left.CPUMillis = -1
	}
	if left.MemoryBytes == 0 && p.Spec.MemoryBytes > 0 {
		left.MemoryBytes = -1
	}
	return left
}

// lacks names what is needed and not there; has 0 is no limit, below 0 nothing.
func lacks(need, has job.Resources, where string) string {
	var out string
	if has.CPUMillis != 0 && need.CPUMillis > has.CPUMillis {
		out = fmt.Sprintf("needs %s, has %s %s", cores(need.CPUMillis), cores(max(has.CPUMillis, 0)), where)
	}
	if has.MemoryBytes != 0 && need.MemoryBytes > has.MemoryBytes {
		if out != "" {
			out += "; "
		}
		out += fmt.Sprintf("needs %s memory, has %s %s", bytes(need.MemoryBytes), bytes(max(has.MemoryBytes, 0)), where)
	}
	return out
}

func cores(millis int64) string {
	n := strconv.FormatFloat(float64(millis)/1000, 'f', -1, 64)
	if n == "1" {
		return "1 core"
	}
	return n + " cores"
}

func bytes(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.size {
			v := strconv.FormatFloat(float64(n)/float64(u.size), 'f', 2, 64)
			for v[len(v)-1] == '0' {
				v = v[:len(v)-1]
			}
			if v[len(v)-1] == '.' {
				v = v[:len(v)-1]
			}
			return v + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " bytes"
}

// farewell says what became of the worker that a job waits for.
func farewell(j *jobEntry) string {
	w := j.waits
	switch {
	case w == nil:
		return "the worker that was made for it is no more"
	case w.failure != "":
		return "its worker could not be made: " + w.failure
	case w.Reason != "":
		return "its worker is gone before it could take the job: " + w.Reason
	}
	return "its worker is gone before it could take the job"
}
