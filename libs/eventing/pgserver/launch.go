package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/fault"
)

// errStillInUse says that what a killed server left behind has not ended yet.
var errStillInUse = errors.New("what an earlier server left behind still runs")

// command returns a program that runs as the owner inside dir, and the name that
// it shall use for dir. The caller calls started once the program has, or has not.
func (s *Server) command(ctx context.Context, program, dir string) (cmd *exec.Cmd, name string, started func(), err error) {
	cmd = exec.CommandContext(ctx, program)
	// A session of its own: the terminal's Ctrl-C is for the parent alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	if s.owner.privileged {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.owner.uid, Gid: s.owner.gid, Groups: s.owner.groups}
	}
	if s.owner.reaches(dir) {
		cmd.Dir = dir
		return cmd, dir, func() {}, nil
	}
	// Opened by root here, used by the owner there: its children inherit it too.
	open, err := os.Open(dir)
	if err != nil {
		return nil, "", nil, fmt.Errorf("open the data directory: %w", err)
	}
	cmd.Dir, cmd.ExtraFiles = "/", []*os.File{open}
	return cmd, inheritedDir, func() { _ = open.Close() }, nil // nothing was written
}

// initialise makes the cluster where the directory has none.
func (s *Server) initialise(ctx context.Context, bin binaries) error {
	entries, err := os.ReadDir(s.config.DataDir)
	if err != nil {
		return fmt.Errorf("read the data directory: %w", err)
	}
	begun := filepath.Join(s.config.DataDir, initMark)
	if _, err := os.Stat(begun); err == nil {
		// An earlier initialisation was interrupted: what is there is not a cluster.
		if err := s.clear(entries); err != nil {
			return fmt.Errorf("clear an unfinished data directory: %w", err)
		}
		entries = nil
	}
	if _, err := os.Stat(filepath.Join(s.config.DataDir, "PG_VERSION")); err == nil {
		return nil
	}
	for _, e := range entries {
		if e.Name() != logName {
			return fault.New(fault.Precondition, "%s is neither empty nor a PostgreSQL cluster (it has %s)", s.config.DataDir, e.Name())
		}
	}
	return s.initdb(ctx, bin, begun)
}

// initMark stands beside what initdb makes until it is complete. initdb only
// accepts an empty directory, so it works in a directory below and the result is
// moved up.
const initMark = "hodei-init"

func (s *Server) clear(entries []os.DirEntry) error {
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(s.config.DataDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) initdb(ctx context.Context, bin binaries, work string) error {
	if err := s.owner.makeDir(work); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	cmd, dataDir, started, err := s.command(ctx, bin.initdb, work)
	if err != nil {
		return err
	}
	defer started()
	cmd.Args = append(cmd.Args, "-D", dataDir, "-U", superuser, "-E", "UTF8", "--no-locale", "-A", "trust", "--no-instructions")
	if s.config.Unsafe {
		cmd.Args = append(cmd.Args, "--no-sync")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	entries, err := os.ReadDir(work)
	if err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(work, e.Name()), filepath.Join(s.config.DataDir, e.Name())); err != nil {
			return fmt.Errorf("make the cluster: %w", err)
		}
	}
	if err := os.Remove(work); err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	return nil
}

// settings are those that the server is started with; nothing is written into
// postgresql.conf.
func (s *Server) settings(ctx context.Context, bin binaries) map[string]string {
	all := map[string]string{
		"listen_addresses":        "",
		"unix_socket_directories": s.socketDir,
		"unix_socket_permissions": "0700",
		"max_connections":         "200",
		"wal_compression":         s.walCompression(ctx, bin),
		"max_wal_size":            "4GB",
		"log_line_prefix":         "%m [%p] %q%u@%d/%a ",
		"logging_collector":       "off",
	}
	if s.config.Unsafe {
		all["fsync"], all["full_page_writes"] = "off", "off"
	}
	maps.Copy(all, s.config.Settings)
	return all
}

// walCompression returns lz4 where this server was built with it, and since 15.
func (s *Server) walCompression(ctx context.Context, bin binaries) string {
	cmd, dataDir, started, err := s.command(ctx, bin.postgres, s.config.DataDir)
	if err != nil {
		return "on"
	}
	defer started()
	cmd.Args = append(cmd.Args, "-D", dataDir, "-c", "wal_compression=lz4", "-C", "wal_compression")
	if cmd.Run() != nil {
		return "on"
	}
	return "lz4"
}

// launch starts the server and waits until it answers.
func (s *Server) launch(ctx context.Context, bin binaries) error {
	// Not bound to ctx: the server outlives Start.
	cmd, dataDir, started, err := s.command(context.Background(), bin.postgres, s.config.DataDir)
	if err != nil {
		return err
	}
	defer started()
	cmd.Args = append(cmd.Args, "-D", dataDir)
	all := s.settings(ctx, bin)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		cmd.Args = append(cmd.Args, "-c", name+"="+all[name])
	}
	last := &tail{}
	var closeLog func() error
	if s.config.Log != nil {
		out := io.MultiWriter(s.config.Log, last)
		cmd.Stdout, cmd.Stderr = out, out
	} else {
		file, err := os.OpenFile(filepath.Join(s.config.DataDir, logName), os.O_CREATE|os.O_TRUNC|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("open the log of postgres: %w", err)
		}
		cmd.Stdout, cmd.Stderr, closeLog = file, file, file.Close
		last.file = file.Name()
	}
	child, err := startChild(cmd, s.config.BindToParent)
	if closeLog != nil {
		err = errors.Join(err, closeLog()) // the child has its own
	}
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	s.setProcess(child)
	for {
		err := s.answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-child.exited():
			return startError(last.String())
		case <-ctx.Done():
			stop, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return errors.Join(fault.Wrap(fault.Unavailable, ctx.Err(), "postgres does not answer (%v)", err), end(stop, child))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func startError(logged string) error {
	err := fmt.Errorf("postgres ended at once: %s", logged)
	if strings.Contains(logged, "pre-existing shared memory block") || strings.Contains(logged, "lock file \"postmaster.pid\" already exists") {
		return errors.Join(errStillInUse, err)
	}
	return err
}

// answers tries a connection.
func (s *Server) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// tail keeps the last of what was written, to say why a start failed.
type tail struct {
	file string // read instead, where set

	mu    sync.Mutex // guards bytes
	bytes []byte
}

const tailBytes = 2000

// Write keeps the end of p.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes = append(t.bytes, p...)
	t.bytes = t.bytes[max(0, len(t.bytes)-tailBytes):]
	return len(p), nil
}

// String returns what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.bytes
	if t.file != "" {
		var err error
		if all, err = os.ReadFile(t.file); err != nil {
			return err.Error()
		}
	}
	return string(bytes.TrimSpace(all[max(0, len(all)-tailBytes):]))
}
