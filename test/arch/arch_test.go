package arch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func repository(t *testing.T) (string, []file) {
	t.Helper()
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no Go files below %s", dir)
	}
	return dir, files
}

func TestImports(t *testing.T) {
	_, files := repository(t)
	for _, b := range imports(rules, files) {
		t.Error(b)
	}
}

func TestNamesCommentsAndSizes(t *testing.T) {
	_, files := repository(t)
	for _, b := range facts(files) {
		t.Error(b)
	}
}

// TestRulesCanFail shows that each rule of the table, by itself, refuses something
// and that what a package needs passes the whole table.
func TestRulesCanFail(t *testing.T) {
	tests := []struct {
		file    string
		imports string
		// refused is the part of the reason that is expected; "" = permitted.
		refused string
	}{
		{"libs/domain/job/a.go", "hodei.dev/libs/domain/fault", ""},
		{"libs/domain/job/a_test.go", "testing", ""},
		{"libs/domain/job/a.go", "github.com/google/uuid", "requires nothing"},
		{"libs/domain/job/a_test.go", "pgregory.net/rapid", "requires nothing"},
		{"libs/domain/job/a.go", "log/slog", "decisions are pure"},
		{"libs/domain/job/a_test.go", "os", ""},
		{"libs/eventing/store/a.go", "github.com/jackc/pgx/v5", ""},
		{"libs/eventing/store/a.go", "hodei.dev/libs/domain/fault", ""},
		{"libs/eventing/store/a.go", "hodei.dev/libs/domain/job", "eventing is generic"},
		{"libs/eventing/store/a_test.go", "hodei.dev/libs/platform/lifecycle", "eventing is generic"},
		{"libs/platform/rpc/a.go", "google.golang.org/grpc", ""},
		{"libs/platform/rpc/a.go", "hodei.dev/libs/eventing/event", "platform is what makes a process"},
		{"libs/platform/rpc/a.go", "github.com/nats-io/nats.go", "neither PostgreSQL nor NATS"},
		{"libs/service/aggregate/a.go", "hodei.dev/libs/eventing/store", ""},
		{"libs/service/aggregate/a.go", "hodei.dev/services/audit/core", "knows none of them"},
		{"proto/hodei/audit/v1/a.pb.go", "google.golang.org/protobuf/proto", ""},
		{"proto/hodei/audit/v1/a.pb.go", "github.com/gogo/protobuf/proto", "protobuf and gRPC only"},
		{"services/relay/relay.go", "hodei.dev/services/relay/core", ""},
		{"services/relay/relay.go", "hodei.dev/services/audit/core", "never imports another"},
		{"services/relay/internal/postgres/a_test.go", "hodei.dev/agent/run", "never imports another"},
		{"services/relay/core/a.go", "hodei.dev/libs/domain/job", ""},
		{"services/relay/core/a.go", "hodei.dev/libs/eventing/event", "pure decisions"},
		{"services/relay/core/a_test.go", "github.com/google/go-cmp/cmp", ""},
		{"services/relay/internal/app/a.go", "hodei.dev/services/relay/core", ""},
		{"services/relay/internal/app/a.go", "hodei.dev/services/relay/internal/postgres", "declare the other ports"},
		{"services/relay/internal/app/a.go", "google.golang.org/grpc", "declare the other ports"},
		{"agent/run/a.go", "hodei.dev/libs/platform/rpc", ""},
		{"agent/run/a.go", "hodei.dev/libs/eventing/event", "speaks gRPC"},
		{"agent/run/a_test.go", "github.com/jackc/pgx/v5/pgxpool", "speaks gRPC"},
		{"cmd/hodei/main.go", "hodei.dev/services/audit", ""},
		{"cmd/hodei/main.go", "hodei.dev/cmd/hodei/internal/dev", ""},
		{"test/e2e/a_test.go", "hodei.dev/cmd/hodei/cli", "programs are leaves"},
		{"test/e2e/a_test.go", "hodei.dev/test/check", ""},
		{"cmd/hodei/main.go", "hodei.dev/test/check", "nothing that ships"},
	}
	failed := map[int]bool{}
	for _, tt := range tests {
		f := file{name: tt.file, test: strings.HasSuffix(tt.file, "_test.go"), imports: []string{tt.imports}}
		broken := imports(rules, []file{f})
		switch {
		case tt.refused == "" && len(broken) > 0:
			t.Errorf("%s -> %s: refused, but it is needed:\n%s", tt.file, tt.imports, strings.Join(broken, "\n"))
		case tt.refused != "" && !strings.Contains(strings.Join(broken, "\n"), tt.refused):
			t.Errorf("%s -> %s: permitted, want a refusal about %q (got %q)", tt.file, tt.imports, tt.refused, broken)
		}
		for i, r := range rules {
			failed[i] = failed[i] || len(imports([]rule{r}, []file{f})) > 0
		}
	}
	for i, r := range rules {
		if !failed[i] {
			t.Errorf("no example breaks the rule %s: %s", r.from, r.why)
		}
	}
}

func TestFactsCanFail(t *testing.T) {
	good := file{name: "libs/domain/job/job.go", pkg: "job", documented: true, lines: 10}
	if broken := facts([]file{good, {name: "libs/domain/job/more.go", pkg: "job"}}); len(broken) > 0 {
		t.Errorf("refused without reason: %q", broken)
	}
	bad := []file{
		{name: "libs/domain/job/job.go", pkg: "job", documented: true, lines: maxLines + 1},
		{name: "libs/domain/job/job.go", pkg: "job"},
		{name: "libs/domain/util/a.go", pkg: "util", documented: true},
		{name: "libs/domain/helpers/strings/a.go", pkg: "strings", documented: true},
		{name: "libs/domain/job/a_test.go", pkg: "common_test", test: true, documented: true},
	}
	for _, f := range bad {
		if len(facts([]file{f})) != 1 {
			t.Errorf("%+v: not refused once: %q", f, facts([]file{f}))
		}
	}
	generated := file{name: "proto/hodei/audit/v1/a.pb.go", pkg: "auditv1", generated: true, lines: 5 * maxLines}
	if broken := facts([]file{generated}); len(broken) > 0 {
		t.Errorf("generated code is refused: %q", broken)
	}
}

// module is what `go mod edit -json` says of a go.mod.
type module struct {
	Require []struct{ Path, Version string }
	Replace []struct {
		Old, New struct{ Path string }
	}
}

func readModule(t *testing.T, dir string) module {
	t.Helper()
	out := command(t, dir, "go", "mod", "edit", "-json")
	var m module
	if err := json.Unmarshal(out, &m); err != nil {
		t.Fatalf("%s/go.mod: %v", dir, err)
	}
	return m
}

func TestDomainRequiresNothing(t *testing.T) {
	dir, _ := repository(t)
	if m := readModule(t, filepath.Join(dir, "libs/domain")); len(m.Require) > 0 {
		t.Errorf("libs/domain/go.mod requires %v: the domain requires nothing", m.Require)
	}
}

// TestSiblings: replace is not transitive, so every go.mod names each sibling
// that it reaches, by its relative folder and without a version of its own.
func TestSiblings(t *testing.T) {
	dir, _ := repository(t)
	for _, name := range workspace(t, dir) {
		m := readModule(t, filepath.Join(dir, name))
		replaced := map[string]string{}
		for _, r := range m.Replace {
			replaced[r.Old.Path] = r.New.Path
		}
		for _, r := range m.Require {
			sibling, ours := strings.CutPrefix(r.Path, prefix)
			if !ours {
				continue
			}
			want, err := filepath.Rel(filepath.Join(dir, name), filepath.Join(dir, sibling))
			if err != nil {
				t.Fatal(err)
			}
			if got := replaced[r.Path]; filepath.Clean(got) != want {
				t.Errorf("%s/go.mod: %s is replaced by %q, want %q", name, r.Path, got, want)
			}
			if r.Version != "v0.0.0" {
				t.Errorf("%s/go.mod: requires %s %s, want v0.0.0", name, r.Path, r.Version)
			}
		}
	}
}

// TestWorkspaceIsComplete: a module that go.work forgets is built by nobody.
func TestWorkspaceIsComplete(t *testing.T) {
	dir, _ := repository(t)
	listed := map[string]bool{}
	for _, name := range workspace(t, dir) {
		listed[name] = true
	}
	for _, pattern := range []string{"*/go.mod", "*/*/go.mod", "*/*/*/go.mod"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			name, err := filepath.Rel(dir, filepath.Dir(f))
			if err != nil {
				t.Fatal(err)
			}
			if !listed[name] && !strings.HasPrefix(name, "tools/") && !strings.HasPrefix(name, ".") {
				t.Errorf("go.work does not use ./%s", name)
			}
		}
	}
}

// TestAgentCarriesNoServerTechnology: the whole module graph, not only imports.
func TestAgentCarriesNoServerTechnology(t *testing.T) {
	dir, _ := repository(t)
	out := command(t, filepath.Join(dir, "agent"), "go", "list", "-m", "-mod=readonly", "all")
	forbidden := regexp.MustCompile(`^github\.com/(jackc/pgx|nats-io/)`)
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if forbidden.MatchString(lines.Text()) {
			t.Errorf("the agent's module graph has %s: go mod graph (in agent, GOWORK=off) says who wants it", lines.Text())
		}
	}
}

// workspace is the modules of go.work, as folders below the root.
func workspace(t *testing.T, dir string) []string {
	t.Helper()
	var work struct{ Use []struct{ DiskPath string } }
	if err := json.Unmarshal(command(t, dir, "go", "work", "edit", "-json", "go.work"), &work); err != nil {
		t.Fatalf("go.work: %v", err)
	}
	var names []string
	for _, u := range work.Use {
		names = append(names, filepath.Clean(u.DiskPath))
	}
	return names
}

// command runs a command without the workspace and returns its standard output.
func command(t *testing.T, dir string, argv ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%s in %s: %w\n%s", strings.Join(argv, " "), dir, err, &stderr))
	}
	return out
}
