package process

import (
	"runtime/debug"
	"testing"
)

func TestVersionOf(t *testing.T) {
	commit := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}}
	for want, tc := range map[string]struct {
		linked string
		info   debug.BuildInfo
	}{
		"v1.2.3":             {"v1.2.3", debug.BuildInfo{Settings: commit}},
		"0123456789ab":       {"", debug.BuildInfo{Settings: commit}},
		"0123456789ab-dirty": {"", debug.BuildInfo{Settings: append(commit, debug.BuildSetting{Key: "vcs.modified", Value: "true"})}},
		"v0.1.0":             {"", debug.BuildInfo{Main: debug.Module{Version: "v0.1.0"}}},
		"dev":                {"", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}},
	} {
		if got := versionOf(tc.linked, &tc.info); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
