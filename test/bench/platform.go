package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// readyIn bounds how long a new platform may take.
const readyIn = 2 * time.Minute

// platform is a `hodei dev` of this measurement.
type platform struct {
	hodei, address, dir string
	cmd                 *exec.Cmd
}

// start makes a platform with an empty data directory and waits until it is ready.
func start(ctx context.Context, bin string, flags []string) (_ *platform, err error) {
	hodei, err := filepath.Abs(filepath.Join(bin, "hodei"))
	if err != nil {
		return nil, err
	}
	p := &platform{hodei: hodei}
	if p.address, err = freeAddress(); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp("", "hodei-bench-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(p.dir, 0o711); err != nil { // Postgres runs as somebody else
		return nil, errors.Join(err, os.RemoveAll(p.dir))
	}
	p.cmd = exec.Command(hodei, append([]string{"dev", "--data-dir", filepath.Join(p.dir, "data"), "--listen", p.address}, flags...)...)
	stderr, err := p.cmd.StderrPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(p.dir))
	}
	ready := make(chan error, 1)
	go func() {
		var log bytes.Buffer
		said := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if !said && strings.HasPrefix(lines.Text(), "hodei is ready") {
				said = true
				ready <- nil
			}
			if !said {
				fmt.Fprintln(&log, lines.Text())
			}
		}
		if !said {
			ready <- fmt.Errorf("hodei dev has ended:\n%s", log.String())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, readyIn)
	defer cancel()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = fmt.Errorf("waiting for hodei dev: %w", ctx.Err())
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// stop ends the platform and removes its data.
func (p *platform) stop() {
	if p.cmd.Process.Signal(syscall.SIGTERM) == nil {
		_ = p.cmd.Wait() // how it ended is no figure
	}
	_ = os.RemoveAll(p.dir)
}

// bench runs `hodei bench` against the platform and reads its figures.
func (p *platform) bench(ctx context.Context, flags ...string) (*figures, error) {
	fmt.Fprintln(os.Stderr, "bench: hodei bench", strings.Join(flags, " "))
	cmd := exec.CommandContext(ctx, p.hodei, append(append([]string{"bench", "--server", p.address, "-o", "json"}, flags...), "--", "true")...)
	cmd.Stderr = os.Stderr
	raw, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("hodei bench %s: %w", strings.Join(flags, " "), err)
	}
	f := &figures{}
	if err := json.Unmarshal(raw, f); err != nil {
		return nil, fmt.Errorf("reading what hodei bench printed: %w", err)
	}
	if f.Failed > 0 {
		return nil, fmt.Errorf("hodei bench %s: %d jobs have failed", strings.Join(flags, " "), f.Failed)
	}
	return f, nil
}

// use is what a process uses while nothing happens.
type use struct{ percent, mib float64 }

// idle measures the platform's process, Postgres and agents left out, over d.
func (p *platform) idle(ctx context.Context, d time.Duration) (use, error) {
	pause := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := pause(5 * time.Second); err != nil { // what the start left to do
		return use{}, err
	}
	before, _, err := p.used()
	if err != nil {
		return use{}, err
	}
	began := time.Now()
	if err := pause(d); err != nil {
		return use{}, err
	}
	after, mib, err := p.used()
	return use{percent: 100 * (after - before).Seconds() / time.Since(began).Seconds(), mib: mib}, err
}

// used reads processor time and memory from /proc.
func (p *platform) used() (cpu time.Duration, mib float64, err error) {
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("only Linux tells what a process uses: %w", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	statm, err3 := os.ReadFile(dir + "/statm")
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, 0, err
	}
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	const tick = time.Second / 100 // USER_HZ, part of the kernel's ABI
	return time.Duration(user+system) * tick, float64(pages*os.Getpagesize()) / (1 << 20), err
}
