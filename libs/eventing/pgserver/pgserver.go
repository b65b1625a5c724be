// Package pgserver runs a private PostgreSQL server from the binaries that are on
// the machine: for `hodei dev` and for tests.
//
// The server listens on a unix socket only, in a directory of mode 0700 that
// belongs to the user it runs as; whoever can enter that directory (this user and
// root) is trusted. It is no part of its parent: when the parent is killed it
// goes on, and the next Start on the same directory adopts it, unless
// Config.BindToParent says otherwise.
//
// PostgreSQL refuses to run as root, so root starts it as an unprivileged user.
// Where that user cannot reach the data directory by its path (it lies in
// /root, say), the server inherits it as an open file and knows it by that
// (/proc/self/fd/3), which needs no rights on the directories above; nothing
// above is changed. (Linux only.)
//
// It is not for production: use a real server there.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hodei.dev/libs/domain/fault"
)

// superuser is the database role that owns everything.
const superuser = "hodei"

// logName is the server's log in its data directory.
const logName = "hodei-postgres.log"

// MaxRuntimeDir is the most bytes that the path of a socket's directory may have.
const MaxRuntimeDir = 85

// Sockets' directories are made here, with names that begin so.
const socketParent, socketPrefix = "/tmp", "hodei-pg-"

// Config says what to start. Only DataDir is required.
type Config struct {
	// DataDir holds the cluster. It is made where it does not exist, and
	// initialised where it is empty. It must be used by one process at a time.
	DataDir string
	// RuntimeDir holds the socket; at most MaxRuntimeDir bytes long. Default: a fresh
	// directory with a short name in /tmp, removed by Stop.
	RuntimeDir string
	// User is the operating system's user that the server runs as. Default: for
	// root "postgres" where it exists, else "nobody"; for others themselves, and
	// nothing else is possible.
	User string
	// Unsafe gives up durability for speed, for tests only: what is committed
	// survives a kill of the server, but not of the machine.
	Unsafe bool
	// BindToParent ends the server when this process ends, however it ends
	// (Linux only; elsewhere it has no effect).
	BindToParent bool
	// Settings are further settings of postgresql.conf; they win over ours.
	Settings map[string]string
	// Log gets the server's log. Default: the file hodei-postgres.log in DataDir,
	// begun anew at each start.
	Log io.Writer
	// StartTimeout is how long recovery after a crash may take. Default 2 minutes.
	StartTimeout time.Duration
}

// NotFoundError says that the machine has no PostgreSQL server; it is a
// fault.Precondition.
type NotFoundError struct {
	// Searched are the places that were looked at.
	Searched []string
}

// Error says in one line what to install.
func (e *NotFoundError) Error() string {
	return "no PostgreSQL server found: `apt-get install postgresql` (Debian, Ubuntu), `dnf install postgresql-server` (Fedora), " +
		"`brew install postgresql` (macOS), or set HODEI_PG_BIN to the directory of initdb and postgres"
}

// Is reports whether target is fault.Precondition.
func (e *NotFoundError) Is(target error) bool { return target == fault.Precondition }

// Server is a running server. Its methods may be called concurrently.
type Server struct {
	config    Config
	owner     *owner
	socketDir string
	ownSocket bool // the socket's directory is removed by Stop
	adopted   bool

	mu      sync.Mutex // guards process, which Restart replaces
	process process
}

func (s *Server) current() process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

func (s *Server) setProcess(p process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = p
}

// Start returns a server that accepts connections: the one that runs in DataDir
// already, else a new one. ctx limits the start alone; the server then runs until
// Stop. Errors: *NotFoundError, fault.Invalid, else what the server logged.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.StartTimeout <= 0 {
		config.StartTimeout = 2 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, config.StartTimeout)
	defer cancel()
	bin, err := findBinaries()
	if err != nil {
		return nil, err
	}
	if config.DataDir == "" {
		return nil, fault.New(fault.Invalid, "the data directory of postgres is not set")
	}
	if config.DataDir, err = filepath.Abs(config.DataDir); err != nil {
		return nil, fmt.Errorf("resolve the data directory: %w", err)
	}
	own, err := findOwner(config.User)
	if err != nil {
		return nil, err
	}
	if err := own.makeDir(config.DataDir); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	s := &Server{config: config, owner: own}
	done, err := s.adopt(ctx)
	if err != nil || done {
		return s, err
	}
	if err := s.makeSocketDir(); err != nil {
		return nil, err
	}
	if err := s.start(ctx, bin); err != nil {
		s.removeSocketDir()
		return nil, err
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, bin binaries) error {
	if err := s.initialise(ctx, bin); err != nil {
		return err
	}
	for {
		err := s.launch(ctx, bin)
		// After a kill -9 of the server its children need a moment to notice.
		if err == nil || !errors.Is(err, errStillInUse) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// URL returns the connection string of a database on this server. The database
// "postgres" always exists.
func (s *Server) URL(database string) string {
	query := url.Values{"host": {s.socketDir}, "user": {superuser}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: query.Encode()}).String()
}

// User is the name of the operating system's user that the server runs as.
func (s *Server) User() string { return s.owner.name }

// PID is the server's process id.
func (s *Server) PID() int { return s.current().pid() }

// Adopted reports whether the server ran already: its settings are those that it
// was started with.
func (s *Server) Adopted() bool { return s.adopted }

// Exited is closed when the server has ended, by Stop or by itself.
func (s *Server) Exited() <-chan struct{} { return s.current().exited() }

// Stop ends the server: transactions are aborted, everything committed is written
// out. When ctx ends before that, it is told to stop at once (the next start then
// recovers), and killed if it still does not; Stop then returns ctx's error.
func (s *Server) Stop(ctx context.Context) error {
	defer s.removeSocketDir()
	return end(ctx, s.current())
}

// Restart stops the server and starts it again on the same data, with the same
// URL. Sessions are lost.
func (s *Server) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.StartTimeout)
	defer cancel()
	bin, err := findBinaries()
	if err != nil {
		return err
	}
	if err := end(ctx, s.current()); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return s.start(ctx, bin)
}

// makeSocketDir prepares the directory of the socket. Its name is short, because
// the path of a socket ends at 107 bytes, whatever the length of DataDir.
func (s *Server) makeSocketDir() error {
	dir := s.config.RuntimeDir
	if dir == "" {
		made, err := os.MkdirTemp(socketParent, socketPrefix)
		if err != nil {
			return fmt.Errorf("make the socket's directory: %w", err)
		}
		dir, s.ownSocket = made, true
	}
	s.socketDir = dir
	if len(dir) > MaxRuntimeDir {
		return fault.New(fault.Invalid, "the runtime directory %s is too long for a socket: at most %d bytes", dir, MaxRuntimeDir)
	}
	if err := s.owner.makeDir(dir); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	if !s.owner.reaches(dir) {
		return fault.New(fault.Invalid, "user %s cannot reach the runtime directory %s", s.owner.name, dir)
	}
	return nil
}

func (s *Server) removeSocketDir() {
	if s.ownSocket {
		if err := os.RemoveAll(s.socketDir); err != nil {
			slog.Default().Debug("remove the directory of postgres's socket", "error", err)
		}
	}
}
