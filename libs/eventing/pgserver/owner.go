package pgserver

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"hodei.dev/libs/domain/fault"
)

// owner is the user that the server runs as.
type owner struct {
	name       string
	uid, gid   uint32
	groups     []uint32
	privileged bool // this process is root and becomes the owner for its children
}

func findOwner(name string) (*owner, error) {
	if os.Geteuid() != 0 {
		return findSelf(name)
	}
	candidates := []string{"postgres", "nobody"}
	if name != "" {
		candidates = []string{name}
	}
	for _, candidate := range candidates {
		u, err := user.Lookup(candidate)
		if err != nil {
			continue
		}
		o, err := newOwner(u)
		if err != nil {
			return nil, err
		}
		if o.uid == 0 {
			return nil, fault.New(fault.Invalid, "postgres refuses to run as %s: name an unprivileged user", candidate)
		}
		o.privileged = true
		return o, nil
	}
	return nil, fault.New(fault.Precondition, "no unprivileged user to run postgres as (looked for %v): postgres refuses to run as root", candidates)
}

func findSelf(name string) (*owner, error) {
	u, err := user.Current()
	if err != nil {
		// A container's user often has no name.
		u = &user.User{Uid: strconv.Itoa(os.Geteuid()), Gid: strconv.Itoa(os.Getegid()), Username: strconv.Itoa(os.Geteuid())}
	}
	if name != "" && name != u.Username {
		return nil, fault.New(fault.Invalid, "only root can run postgres as %s; this is %s", name, u.Username)
	}
	return newOwner(u)
}

func newOwner(u *user.User) (*owner, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user %s: %w", u.Username, err)
	}
	o := &owner{name: u.Username, uid: uint32(uid), gid: uint32(gid)}
	ids, err := u.GroupIds()
	if err != nil {
		return o, nil // its own group is enough
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			o.groups = append(o.groups, uint32(n))
		}
	}
	return o, nil
}

// makeDir makes a directory that is the owner's alone. Directories above that
// are missing are made too, and can be passed by everybody.
func (o *owner) makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fault.New(fault.Invalid, "%s is not a directory", dir)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && stat.Uid != o.uid {
		if err := o.take(dir); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o700)
}

// take makes a directory the owner's, with all that is in it: a cluster that
// another user has run before (a restored copy, say).
func (o *owner) take(dir string) error {
	if !o.privileged {
		return fault.New(fault.Denied, "%s belongs to another user than %s", dir, o.name)
	}
	if _, err := os.Stat(filepath.Join(dir, "PG_VERSION")); err != nil {
		// Not a cluster: what is in it is somebody else's.
		return os.Lchown(dir, int(o.uid), int(o.gid))
	}
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(o.uid), int(o.gid))
	})
}

// reaches reports whether the owner may pass all directories down to dir.
func (o *owner) reaches(dir string) bool {
	if !o.privileged {
		return true
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for at := real; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil || !o.mayPass(info) {
			return false
		}
		if at == filepath.Dir(at) {
			return true
		}
	}
}

func (o *owner) mayPass(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	mode := info.Mode().Perm()
	if stat.Uid == o.uid {
		return mode&0o100 != 0
	}
	if slices.Contains(append([]uint32{o.gid}, o.groups...), stat.Gid) {
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}
