// Package eventingtest gives tests the real things: a database of their own on a
// throw-away PostgreSQL server, an event log in it, a NATS server.
//
// A test process shares one server of each kind, started when first asked for.
// Call [Main] from TestMain, so that they are stopped; where a process is killed,
// the system stops them (Linux).
package eventingtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/eventing/pgserver"
	"hodei.dev/libs/eventing/store"
)

// PostgresEnv names the environment variable that holds the URL of a server to
// use instead of one of our own. Its user must be allowed to create databases.
const PostgresEnv = "HODEI_TEST_POSTGRES_URL"

// dirPrefix begins the names of data directories; the process id follows.
const dirPrefix = "hodei-test-pg-"

// tmpfsNeeded is how much must be free on a tmpfs before data go there.
const tmpfsNeeded = 4 << 30

// shared is the server of this test process. It is the package's one state: the
// process is what it belongs to.
var shared postgresServer

// postgresServer is a server with a template database that has the event log.
type postgresServer struct {
	mu       sync.Mutex // guards the following
	url      string     // of the database "postgres"; "" = not started
	server   *pgserver.Server
	dir      string
	template string // the name of the migrated database; "" = not made yet
}

// Main runs a package's tests and stops the shared PostgreSQL server, where there
// is one. Use it as func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }.
func Main(m *testing.M) int {
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the test's postgres:", err)
		return max(code, 1)
	}
	return code
}

// Postgres returns the URL of a new, empty database, which is dropped when the
// test ends. It fails the test where there is no server to be had.
func Postgres(tb testing.TB) string {
	tb.Helper()
	return database(tb, "")
}

// PostgresServer returns a server that belongs to this test alone, to be
// restarted or killed by it.
func PostgresServer(tb testing.TB) *pgserver.Server {
	tb.Helper()
	dir, err := dataDir()
	if err != nil {
		tb.Fatal(err)
	}
	server, err := pgserver.Start(tb.Context(), serverConfig(dir))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := stopServer(server, dir); err != nil {
			tb.Error(err)
		}
	})
	return server
}

// MigratedPostgres returns the URL of a new database with an empty event log.
func MigratedPostgres(tb testing.TB) string {
	tb.Helper()
	template, err := shared.migrated(tb.Context())
	if err != nil {
		tb.Fatalf("make a database with an event log: %v", err)
	}
	return database(tb, template)
}

// MigratedStore returns a store on a new database with an empty event log.
func MigratedStore(tb testing.TB) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Config{URL: MigratedPostgres(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

func database(tb testing.TB, template string) string {
	tb.Helper()
	admin, err := shared.start(tb.Context())
	if err != nil {
		tb.Fatalf("start postgres: %v", err)
	}
	name := "test_" + strings.ToLower(rand.Text()[:16])
	if template == "" {
		template = "template0"
	}
	if err := execute(tb.Context(), admin, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		tb.Fatalf("create a database: %v", err)
	}
	tb.Cleanup(func() {
		if err := execute(context.WithoutCancel(tb.Context()), admin, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			tb.Errorf("drop the test's database: %v", err)
		}
	})
	return withDatabase(admin, name)
}

// start returns the URL of the server's database "postgres".
func (s *postgresServer) start(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.startLocked(ctx)
}

func (s *postgresServer) startLocked(ctx context.Context) (string, error) {
	if s.url != "" {
		return s.url, nil
	}
	if given := os.Getenv(PostgresEnv); given != "" {
		s.url = given
		return s.url, nil
	}
	dir, err := dataDir()
	if err != nil {
		return "", err
	}
	server, err := pgserver.Start(ctx, serverConfig(dir))
	if err != nil {
		return "", err
	}
	s.server, s.dir, s.url = server, dir, server.URL("postgres")
	return s.url, nil
}

// migrated returns the name of the database that others are copied from.
func (s *postgresServer) migrated(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	admin, err := s.startLocked(ctx)
	if err != nil || s.template != "" {
		return s.template, err
	}
	name := "template_" + strings.ToLower(rand.Text()[:16])
	if err := execute(ctx, admin, "CREATE DATABASE "+name+" TEMPLATE template0"); err != nil {
		return "", err
	}
	if err := store.Migrate(ctx, withDatabase(admin, name)); err != nil {
		return "", err
	}
	s.template = name
	return name, nil
}

func (s *postgresServer) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return stopServer(s.server, s.dir)
	}
	if s.template != "" { // on a server that stays
		return execute(context.Background(), s.url, "DROP DATABASE "+s.template+" WITH (FORCE)")
	}
	return nil
}

func serverConfig(dir string) pgserver.Config {
	config := pgserver.Config{
		DataDir: filepath.Join(dir, "data"), Unsafe: true, BindToParent: true,
		Settings: map[string]string{"max_connections": "300", "shared_buffers": "256MB"},
	}
	// Beside the data it is swept up with them, where its path is not too long.
	if sockets := filepath.Join(dir, "s"); len(sockets) <= pgserver.MaxRuntimeDir {
		config.RuntimeDir = sockets
	}
	return config
}

func stopServer(server *pgserver.Server, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// dataDir makes a directory for a server's data, in memory where there is room,
// and removes those of processes that are no more.
func dataDir() (string, error) {
	base := os.TempDir()
	var stat syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &stat); err == nil && uint64(stat.Bsize)*stat.Bavail >= tmpfsNeeded {
		base = "/dev/shm"
	}
	if err := sweep(base); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(base, dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755) // the server's user must reach what is in it
}

func sweep(base string) error {
	old, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		pid, err := strconv.Atoi(id)
		if err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			continue
		}
		_ = os.RemoveAll(dir) // a later process tries again
	}
	return nil
}

func withDatabase(admin, name string) string {
	u, err := url.Parse(admin)
	if err != nil {
		return admin // refused by whoever connects
	}
	u.Path = "/" + name
	return u.String()
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, sql); err != nil {
		_ = conn.Close(ctx) // the first error counts
		return err
	}
	return conn.Close(ctx)
}
