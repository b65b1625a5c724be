package process

import (
	"runtime"
	"runtime/debug"
)

// version is set when a release is built:
// -ldflags "-X hodei.dev/libs/platform/process.version=v1.2.3".
var version string

// Version of the build: what the linker was told, else the commit it was built from
// (with "-dirty" where the tree had changes), else the module's version, else "dev".
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(version, info)
}

func versionOf(linked string, info *debug.BuildInfo) string {
	if linked != "" {
		return linked
	}
	if revision := setting(info, "vcs.revision"); revision != "" {
		revision = revision[:min(12, len(revision))]
		if setting(info, "vcs.modified") == "true" {
			revision += "-dirty"
		}
		return revision
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	return "dev"
}

func setting(info *debug.BuildInfo, key string) string {
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// Build is what the version command prints.
type Build struct {
	// Name of the program, such as "hodei-scheduler".
	Name string `json:"name"`
	// Version as [Version] has it.
	Version string `json:"version"`
	// Commit it was built from; empty where the build does not know.
	Commit string `json:"commit"`
	// BuiltWith is the Go version.
	BuiltWith string `json:"built_with"`
	// Platform is operating system and architecture, such as "linux/amd64".
	Platform string `json:"platform"`
}

// BuildOf returns what is known of this build of the named program.
func BuildOf(name string) Build {
	b := Build{Name: name, Version: Version(), BuiltWith: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.Commit = setting(info, "vcs.revision")
	}
	return b
}
