package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// adoptTimeout is how long a server that runs already has to answer before it is
// stopped; it may be recovering.
const adoptTimeout = 10 * time.Second

// adopt takes over a server that runs in the data directory, and reports whether
// there was one that answers. One that does not is stopped.
func (s *Server) adopt(ctx context.Context) (bool, error) {
	pid, socketDir, err := readPidFile(s.config.DataDir)
	if err != nil {
		return false, err
	}
	if pid == 0 {
		return false, nil
	}
	if !alive(pid) {
		// A server that was killed could not take its socket with it.
		if madeByUs(socketDir) {
			return false, os.RemoveAll(socketDir)
		}
		return false, nil
	}
	if !runsIn(pid, s.config.DataDir) {
		// Another process got its number, as happens after a restart of a
		// container; postgres would take it for a server.
		return false, os.Remove(filepath.Join(s.config.DataDir, "postmaster.pid"))
	}
	running := newFound(pid)
	s.socketDir = socketDir
	s.setProcess(running)
	waiting, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	for socketDir != "" && waiting.Err() == nil {
		if s.answers(waiting) == nil {
			s.adopted, s.ownSocket = true, madeByUs(socketDir)
			return true, nil
		}
		if _, err := os.Stat(socketDir); err != nil {
			break // without its socket it will never answer
		}
		select {
		case <-waiting.Done():
		case <-running.exited():
			return false, nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	stopping, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	if err := end(stopping, running); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return false, fmt.Errorf("stop the postgres that was left behind (process %d): %w", pid, err)
	}
	return false, ctx.Err()
}

// readPidFile returns what postmaster.pid says: line 1 is the process, line 5 the
// directory of the socket. Pid is 0 where there is no such file.
func readPidFile(dataDir string) (pid int, socketDir string, err error) {
	content, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("look for a postgres that runs already: %w", err)
	}
	lines := strings.Split(string(content), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 0 {
		return 0, "", nil // postgres itself takes care of a broken file
	}
	if len(lines) > 4 {
		socketDir = strings.TrimSpace(lines[4])
	}
	return pid, socketDir, nil
}

// madeByUs reports whether a socket's directory has a name such as we give, and
// so is ours to remove.
func madeByUs(dir string) bool {
	return filepath.Clean(dir) == dir && filepath.Dir(dir) == socketParent && strings.HasPrefix(filepath.Base(dir), socketPrefix)
}
