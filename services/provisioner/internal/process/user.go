package process

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/bootstrap"
)

// The users that workers get of their own: a range that systems keep for such use.
// Each worker has another one, so that jobs of different workers can neither read
// each other's files nor signal each other's processes.
const (
	firstUser = 61184
	lastUser  = 65519
)

// userOf is who a worker's jobs run as; nil = the own user. The caller has made the
// record's user 0 where the worker has none of its own yet.
func (p *Provider) userOf(runAs string, own *uint32, workerID string) (*bootstrap.User, error) {
	runAs = cmp.Or(runAs, p.cfg.RunAs)
	if runAs != "" {
		return lookupUser(runAs, os.Geteuid())
	}
	if os.Geteuid() != 0 {
		return nil, nil
	}
	if *own == 0 {
		id, err := p.takeUser(workerID)
		if err != nil {
			return nil, err
		}
		*own = id
	}
	return &bootstrap.User{UID: *own, GID: *own, Name: "hodei-" + strconv.Itoa(int(*own))}, nil
}

// takeUser gives a worker a user that no other live worker has.
func (p *Provider) takeUser(workerID string) (uint32, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := make(map[uint32]bool, len(p.users))
	for _, id := range p.users {
		taken[id] = true
	}
	for id := uint32(firstUser); id <= lastUser; id++ {
		if !taken[id] {
			p.users[workerID] = id
			return id, nil
		}
	}
	return 0, fault.New(fault.Exhausted, "all %d users for workers are in use", lastUser-firstUser+1)
}

// lookupUser resolves a name, a number or number:number. Without root's rights only
// the own user is possible.
func lookupUser(runAs string, euid int) (*bootstrap.User, error) {
	u, err := resolveUser(runAs)
	if err != nil {
		return nil, err
	}
	if euid != 0 {
		if int(u.UID) != euid {
			return nil, fault.New(fault.Invalid, "jobs can run as %s only where the provisioner runs as root", runAs)
		}
		return nil, nil
	}
	if u.Name == "postgres" {
		return nil, fault.New(fault.Invalid, "jobs do not run as postgres: they could read the event log")
	}
	if u.UID == 0 && runAs != "root" && runAs != "0" && runAs != "0:0" {
		return nil, fault.New(fault.Invalid, "%s is root: write root where that is meant", runAs)
	}
	return &u, nil
}

func resolveUser(runAs string) (bootstrap.User, error) {
	if uid, gid, ok := strings.Cut(runAs, ":"); ok {
		id, err := number(uid)
		group, gerr := number(gid)
		if err = errors.Join(err, gerr); err != nil {
			return bootstrap.User{}, fault.New(fault.Invalid, "%q: a name, a number, or number:number", runAs)
		}
		return bootstrap.User{UID: id, GID: group}, nil
	}
	found, err := user.Lookup(runAs)
	if err != nil {
		id, nerr := number(runAs)
		if nerr != nil {
			return bootstrap.User{}, fault.New(fault.Invalid, "there is no user %q on this machine", runAs)
		}
		if found, err = user.LookupId(runAs); err != nil {
			return bootstrap.User{UID: id, GID: id}, nil // a number needs no name
		}
	}
	return account(found)
}

// account is a user of the machine with the groups and the home that it has there.
func account(found *user.User) (bootstrap.User, error) {
	uid, err := number(found.Uid)
	gid, gerr := number(found.Gid)
	if err = errors.Join(err, gerr); err != nil {
		return bootstrap.User{}, fmt.Errorf("user %s: %w", found.Username, err)
	}
	u := bootstrap.User{UID: uid, GID: gid, Name: found.Username}
	groups, err := found.GroupIds()
	if err != nil {
		groups = nil // a user without a line of its own in the group file
	}
	for _, g := range groups {
		if id, err := number(g); err == nil && id != gid {
			u.Groups = append(u.Groups, id)
		}
	}
	if info, err := os.Stat(found.HomeDir); err == nil && info.IsDir() && found.HomeDir != "/" {
		u.Home = found.HomeDir
	}
	return u, nil
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}
