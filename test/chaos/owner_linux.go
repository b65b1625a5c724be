package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ownerOf is the process that opened the connection which a link has accepted; 0
// where it cannot be told.
func ownerOf(c net.Conn) int {
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	inode := inodeOf(addr.Port)
	if inode == "" {
		return 0
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return 0
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == "socket:["+inode+"]" {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2]) // by the pattern it is a number
			return pid
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
