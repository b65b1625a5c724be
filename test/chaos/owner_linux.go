package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
)

// ownerOf is which of some processes has opened the connection that a link has
// accepted; 0 where none has.
func ownerOf(c net.Conn, pids []int) int {
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	inode := inodeOf(addr.Port)
	if inode == "" {
		return 0
	}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, _ := os.ReadDir(dir) // of one that has ended: none
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && to == "socket:["+inode+"]" {
				return pid
			}
		}
	}
	return 0
}

// inodeOf is the socket on 127.0.0.1 with this local port.
func inodeOf(port int) string {
	table, err := os.Open("/proc/net/tcp")
	if err != nil {
		return ""
	}
	defer table.Close()
	local := fmt.Sprintf("0100007F:%04X", port)
	for lines := bufio.NewScanner(table); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 9 && f[1] == local {
			return f[9]
		}
	}
	return ""
}
