package pgserver_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/pgserver"
)

// tempDir is a directory that an unprivileged user can reach: t.TempDir cannot
// always be, and is too long for nothing here.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgserver-test-") //nolint:usetesting // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func start(t *testing.T, config pgserver.Config) *pgserver.Server {
	t.Helper()
	config.Unsafe, config.BindToParent = true, true
	s, err := pgserver.Start(t.Context(), config)
	if err != nil {
		if errors.Is(err, fault.Precondition) {
			t.Fatal(err, "(see make deps)")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *pgserver.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query[T any](t *testing.T, s *pgserver.Server, sql string) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// Data survives a stop and a start; settings are in force; no TCP port is open.
func TestStartStopStart(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	config := pgserver.Config{DataDir: dir, Settings: map[string]string{"work_mem": "7MB"}}
	s := start(t, config)
	if got := query[string](t, s, "SELECT current_setting('work_mem') || ' ' || current_setting('max_wal_size') || ' ' || current_setting('listen_addresses')"); got != "7MB 4GB " {
		t.Errorf("settings are %q", got)
	}
	if got := query[string](t, s, "SELECT current_setting('server_encoding') || ' ' || datcollate FROM pg_database WHERE datname = 'postgres'"); got != "UTF8 C" {
		t.Errorf("the cluster has encoding and locale %q", got)
	}
	query[int](t, s, "WITH x AS (SELECT 1) SELECT 1 FROM x")
	create(t, s)
	stop(t, s)
	select {
	case <-s.Exited():
	default:
		t.Error("Exited is not closed after Stop")
	}
	again := start(t, config)
	if again.Adopted() {
		t.Error("a stopped server was adopted")
	}
	if got := query[int](t, again, "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data directory has mode %v, %v; want 0700", info.Mode(), err)
	}
}

func create(t *testing.T, s *pgserver.Server) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 42 AS n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLongDataDirectory(t *testing.T) {
	dir := filepath.Join(tempDir(t), strings.Repeat("a-long-name/", 20), "data")
	s := start(t, pgserver.Config{DataDir: dir})
	if got := query[int](t, s, "SELECT 1"); got != 1 {
		t.Error(got)
	}
}

// Root's home is closed to the server's user; nothing above the data is opened.
func TestDataDirectoryBehindAClosedOne(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root runs the server as another user")
	}
	closed := filepath.Join(tempDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(closed, "home", "data")
	s := start(t, pgserver.Config{DataDir: dir})
	create(t, s)
	stop(t, s)
	again := start(t, pgserver.Config{DataDir: dir})
	if got := query[int](t, again, "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
	if info, err := os.Stat(closed); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory above has mode %v, %v", info.Mode(), err)
	}
	adopted := start(t, pgserver.Config{DataDir: dir})
	if !adopted.Adopted() || adopted.PID() != again.PID() {
		t.Error("the running server was not adopted")
	}
}

// A server whose parent forgot it is adopted, its data and sessions with it.
func TestAdopt(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	first := start(t, pgserver.Config{DataDir: dir})
	create(t, first)
	second := start(t, pgserver.Config{DataDir: dir})
	if !second.Adopted() || second.PID() != first.PID() {
		t.Fatalf("process %d was not adopted (now %d)", first.PID(), second.PID())
	}
	if got := query[int](t, second, "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
	stop(t, second)
	<-first.Exited()
}

// A server that cannot be reached any more is stopped, and another is started.
func TestReplaceUnreachable(t *testing.T) {
	base := tempDir(t)
	dir, sockets := filepath.Join(base, "data"), filepath.Join(base, "s")
	first := start(t, pgserver.Config{DataDir: dir, RuntimeDir: sockets})
	create(t, first)
	if err := os.RemoveAll(sockets); err != nil {
		t.Fatal(err)
	}
	second := start(t, pgserver.Config{DataDir: dir})
	if second.Adopted() {
		t.Error("a server without a socket was adopted")
	}
	<-first.Exited()
	if got := query[int](t, second, "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
}

func TestStartAfterKill(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	first := start(t, pgserver.Config{DataDir: dir})
	create(t, first)
	if err := syscall.Kill(first.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.Exited()
	second := start(t, pgserver.Config{DataDir: dir})
	if got := query[int](t, second, "SELECT n FROM kept"); got != 42 {
		t.Errorf("read %d, want 42", got)
	}
}

// A stale postmaster.pid whose number belongs to another process by now.
func TestStalePidFile(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	stop(t, start(t, pgserver.Config{DataDir: dir}))
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = other.Wait() // it was killed
	}()
	content := []byte(strings.Join([]string{strconv.Itoa(other.Process.Pid), dir, "0", "5432", "/tmp", "", ""}, "\n"))
	if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	if s := start(t, pgserver.Config{DataDir: dir}); s.Adopted() {
		t.Error("another process was adopted")
	}
}

// An initialisation that was interrupted is begun again.
func TestUnfinishedInitialisation(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	if err := os.MkdirAll(filepath.Join(dir, "hodei-init", "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, pgserver.Config{DataDir: dir})
}

func TestRefused(t *testing.T) {
	full := tempDir(t)
	if err := os.WriteFile(filepath.Join(full, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		config pgserver.Config
		bin    string
		want   fault.Kind
		says   string
	}{
		{name: "no data directory", want: fault.Invalid, says: "data directory"},
		{name: "somebody else's directory", config: pgserver.Config{DataDir: full}, want: fault.Precondition, says: "letter.txt"},
		{name: "socket too long", config: pgserver.Config{DataDir: filepath.Join(full, "d"), RuntimeDir: filepath.Join(full, strings.Repeat("x", 90))}, want: fault.Invalid, says: "too long"},
		{name: "nothing installed", config: pgserver.Config{DataDir: filepath.Join(full, "d")}, bin: "/nowhere", want: fault.Precondition, says: "apt-get install postgresql"},
		{name: "bad setting", config: pgserver.Config{DataDir: filepath.Join(full, "e"), Settings: map[string]string{"work_mem": "many"}}, want: fault.Internal, says: "work_mem"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("HODEI_PG_BIN", test.bin)
			_, err := pgserver.Start(t.Context(), test.config)
			if err == nil || fault.KindOf(err) != test.want || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s saying %q", err, test.want, test.says)
			}
		})
	}
	if content, err := os.ReadFile(filepath.Join(full, "letter.txt")); err != nil || string(content) != "dear" {
		t.Error("a foreign file was touched")
	}
}
