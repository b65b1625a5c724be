package run

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// credential is the kernel's form of who a job runs as. Without groups of its own
// it has none of the agent's either.
func credential(c *Credential) *syscall.Credential {
	if c == nil {
		return nil
	}
	return &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
}

// hideListed marks every open descriptor of this process to be closed in children.
func hideListed(list string) error {
	entries, err := os.ReadDir(list)
	if err != nil {
		return fmt.Errorf("hiding the agent's descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}
