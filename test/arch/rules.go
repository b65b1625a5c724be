package arch

import (
	"slices"
	"strings"
)

// rule says what the packages of one part of the tree may import. A package may
// fall under several rules and must keep them all.
//
// Patterns are paths below the root of the repository, or import paths of
// others: * stands for one path element, and a last /... for the folder and all
// below it. "std" is the standard library, "external" every other module that is
// not this repository's, and own/... the importing service's own packages.
type rule struct {
	// from is the pattern of the packages that it speaks of.
	from string
	// sources: only what is shipped; tests may import more.
	sources bool
	// allow is all that may be imported; nil allows everything.
	allow []string
	// deny is taken out of that.
	deny []string
	// not are importers that it does not speak of although from matches.
	not []string
	// why is what a failure prints.
	why string
}

const (
	postgres = "github.com/jackc/..."
	nats     = "github.com/nats-io/..."
)

// rules is the table. ARCHITECTURE.md tells the same in a picture.
var rules = []rule{
	{
		from:  "libs/domain/...",
		allow: []string{"std", "libs/domain/..."},
		why:   "the domain requires nothing, so that it can be read, tested and moved alone; ids and times are passed in",
	},
	{
		from: "libs/domain/...", sources: true,
		deny: []string{"context", "database/...", "log/...", "net/...", "os/...", "math/rand/..."},
		why:  "decisions are pure: no clock, disk, network, randomness or logger; state comes in, events go out",
	},
	{
		from:  "libs/eventing/...",
		allow: []string{"std", "external", "libs/domain/fault", "libs/eventing/..."},
		why:   "eventing is generic: it knows no job, no worker and no process, only error kinds and its technologies",
	},
	{
		from:  "libs/platform/...",
		allow: []string{"std", "external", "libs/domain/fault", "libs/platform/..."},
		why:   "platform is what makes a process: it knows no job, no worker and no events",
	},
	{
		from: "libs/platform/...",
		deny: []string{postgres, nats},
		why:  "the agent is built on platform and carries neither PostgreSQL nor NATS",
	},
	{
		from:  "libs/service/...",
		allow: []string{"std", "external", "libs/...", "proto/..."},
		why:   "libs/service joins domain, eventing and platform for the services, and knows none of them",
	},
	{
		from:  "proto/...",
		allow: []string{"std", "proto/...", "google.golang.org/protobuf/...", "google.golang.org/grpc/..."},
		why:   "the contract needs protobuf and gRPC only, so that clients get nothing else with it",
	},
	{
		from:  "services/*/...",
		allow: []string{"std", "external", "libs/...", "proto/...", "own/..."},
		why:   "a service never imports another: services share events, protos and libs",
	},
	{
		from: "services/*/core/...", sources: true,
		allow: []string{"std", "libs/domain/...", "own/core/..."},
		why:   "the core is pure decisions, so that the simulation can run it; what it needs comes in as arguments",
	},
	{
		from: "services/*/internal/app/...", sources: true,
		allow: []string{
			"std", "libs/domain/...", "own/core/...", "own/internal/app/...",
			"libs/service/aggregate", "libs/service/command", "libs/eventing/event", "libs/eventing/store",
		},
		why: "use cases speak of aggregates, events and appends (ADR 0001) and declare the other ports they need; technologies implement them in packages named after them",
	},
	{
		from:  "agent/...",
		allow: []string{"std", "external", "libs/domain/...", "libs/platform/...", "proto/...", "agent/..."},
		deny:  []string{postgres, nats},
		why:   "the agent is a small binary that runs beside users' commands: it speaks gRPC to registry and nothing else",
	},
	{
		from: "...",
		deny: []string{"cmd/..."}, not: []string{"cmd/..."},
		why: "programs are leaves: what two of them need belongs into libs",
	},
	{
		from: "...",
		deny: []string{"test/..."}, not: []string{"test/..."},
		why: "tests across modules are leaves: nothing that ships depends on them",
	},
}

// speaksOf reports whether r is about f.
func (r rule) speaksOf(f file) bool {
	if r.sources && f.test {
		return false
	}
	return match(r.from, f.dir()) && !slices.ContainsFunc(r.not, func(p string) bool { return match(p, f.dir()) })
}

// permits reports whether r lets f import the package.
func (r rule) permits(f file, pkg string) bool {
	within := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, f, pkg) })
	}
	return (r.allow == nil || within(r.allow)) && !within(r.deny)
}

// covers reports whether a pattern of allow or deny, as f means it, covers the imported package.
func covers(pattern string, f file, pkg string) bool {
	local, ours := strings.CutPrefix(pkg, prefix)
	first, _, _ := strings.Cut(pkg, "/")
	std := !strings.Contains(first, ".")
	switch {
	case pattern == "std":
		return std
	case pattern == "external":
		return !std && !ours
	case strings.HasPrefix(pattern, "own/"):
		parts := strings.SplitN(f.dir(), "/", 3) // services/<name>/...
		return ours && len(parts) > 1 && match(parts[0]+"/"+parts[1]+strings.TrimPrefix(pattern, "own"), local)
	case ours:
		return match(pattern, local)
	default:
		return match(pattern, pkg)
	}
}

// match reports whether a path falls under a pattern.
func match(pattern, name string) bool {
	want, got := strings.Split(pattern, "/"), strings.Split(name, "/")
	for i, w := range want {
		if w == "..." {
			return true
		}
		if i >= len(got) || w != "*" && w != got[i] {
			return false
		}
	}
	return len(want) == len(got)
}
