package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// workDir is an agent's directory: jobs/ with one directory for each attempt,
// trees/ with what is known of their processes, and a lock.
type workDir struct {
	jobs, trees string
	lock        *os.File
}

// openWorkDir makes the directory and takes it for this process alone.
func openWorkDir(path string, user *User) (w workDir, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return w, fmt.Errorf("finding the work directory: %w", err)
	}
	w.jobs, w.trees = filepath.Join(path, "jobs"), filepath.Join(path, "trees")
	if err := errors.Join(os.MkdirAll(w.jobs, 0o711), os.MkdirAll(w.trees, 0o700)); err != nil {
		return w, misconfigured("the work directory cannot be made: %v", err)
	}
	// Whatever the umask: the jobs' user has to get through, and to list nothing.
	if err := os.Chmod(w.jobs, 0o711); err != nil {
		return w, misconfigured("the work directory is not the agent's own: %v", err)
	}
	if user != nil {
		if os.Geteuid() != 0 && int(user.UID) != os.Geteuid() {
			return w, misconfigured("only root can run jobs as another user (%d)", user.UID)
		}
		if err := searchable(w.jobs, *user); err != nil {
			return w, err
		}
	}
	w.lock, err = os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return w, misconfigured("the work directory cannot be used: %v", err)
	}
	if err := syscall.Flock(int(w.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		w.lock.Close()
		return w, misconfigured("the work directory %s is in use by another agent (%v)", path, err)
	}
	return w, nil
}

// searchable returns an error unless the user may pass every directory down to path.
func searchable(path string, u User) error {
	if u.UID == 0 {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("looking at the work directory: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		bit := fs.FileMode(0o001)
		switch {
		case st.Uid == u.UID:
			bit = 0o100
		case st.Gid == u.GID || slices.Contains(u.Groups, st.Gid):
			bit = 0o010
		}
		if info.Mode()&bit == 0 {
			return misconfigured("user %d, that jobs are to run as, may not enter %s: give it the permission (chmod o+x) or use another work directory", u.UID, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// clear removes what attempts of an earlier agent left.
func (w workDir) clear() error {
	entries, err := os.ReadDir(w.jobs)
	if err != nil {
		return fmt.Errorf("looking for leftovers: %w", err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(w.jobs, e.Name())); err != nil {
			return fmt.Errorf("removing what an earlier agent left: %w", err)
		}
	}
	return nil
}

// close gives the directory back.
func (w workDir) close(log *slog.Logger) {
	if err := w.lock.Close(); err != nil {
		log.Error("releasing the work directory", "error", err)
	}
}
