package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// entry is a line of the workers' journal: what a process of a job says of itself,
// in a file that the platform knows nothing of.
type entry struct {
	At      time.Time `json:"at"`
	Job     string    `json:"job"`
	Attempt int       `json:"attempt"`
	PID     int       `json:"pid"`
	// What is start, end or overlap.
	What string `json:"what"`
	// Code is the exit code of an end.
	Code int `json:"code,omitempty"`
	// Other is who held the job's lock when an overlap was found.
	Other string `json:"other,omitempty"`
}

// journal is the directory that jobs write to: the file of entries, and a lock for
// each job. A lock is held by every process of an attempt and ends with the last of
// them, however it ends: the kernel says how long an attempt lasted, not the job.
type journal struct{ dir string }

// newJournal makes an empty journal that every user may write to: jobs of different workers
// are different users. The modes are set and not left to the umask, which all plans of this process share.
func newJournal(dir string) (journal, error) {
	locks, entries := filepath.Join(dir, "locks"), filepath.Join(dir, "entries")
	err := os.MkdirAll(locks, 0o777)
	if err == nil {
		err = os.WriteFile(entries, nil, 0o666)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o777, locks: 0o777, entries: 0o666} {
		if err == nil {
			err = os.Chmod(path, mode)
		}
	}
	if err != nil {
		return journal{}, fmt.Errorf("make the journal: %w", err)
	}
	return journal{dir: dir}, nil
}

// write appends an entry, in one piece.
func (j journal) write(e entry) error {
	e.At = time.Now()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(j.dir, "entries"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Close()
}

// claim takes the job's lock for this process and all that it starts with the file;
// where another attempt has it, who says so. The file stays open.
func (j journal) claim(job string, attempt int) (f *os.File, other string, err error) {
	old := syscall.Umask(0)
	f, err = os.OpenFile(filepath.Join(j.dir, "locks", job), os.O_CREATE|os.O_RDWR, 0o666)
	syscall.Umask(old)
	if err != nil {
		return nil, "", err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := make([]byte, 64)
		n, _ := f.ReadAt(holder, 0) // an empty name says enough
		return f, "attempt " + strings.TrimSpace(string(holder[:n])), nil
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%-30d\n", attempt), 0)
	return f, "", err
}

// held lists the jobs some process of which still lives.
func (j journal) held() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(j.dir, "locks", "*"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			out = append(out, filepath.Base(name))
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// read returns the entries of each job, in the order in which they were written.
func (j journal) read() (map[string][]entry, error) {
	content, err := os.ReadFile(filepath.Join(j.dir, "entries"))
	if err != nil {
		return nil, err
	}
	out := map[string][]entry{}
	for line := range strings.Lines(string(content)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, fmt.Errorf("the journal has the line %q: %w", line, err)
		}
		out[e.Job] = append(out[e.Job], e)
	}
	return out, nil
}

// doubled says what the journal of one job tells of attempts that ran side by side, twice or
// in the wrong order; empty where all is well.
func doubled(entries []entry) string {
	last, started := 0, map[int]bool{}
	for _, e := range entries {
		switch e.What {
		case "overlap":
			return fmt.Sprintf("attempt %d (pid %d) started at %s while %s still ran", e.Attempt, e.PID, e.At.Format(clock), e.Other)
		case "start":
			if started[e.Attempt] {
				return fmt.Sprintf("attempt %d was started twice, again at %s", e.Attempt, e.At.Format(clock))
			}
			if e.Attempt < last {
				return fmt.Sprintf("attempt %d started at %s, after attempt %d", e.Attempt, e.At.Format(clock), last)
			}
			started[e.Attempt], last = true, e.Attempt
		}
	}
	return ""
}

// ended is the exit code that an attempt wrote as its last word.
func ended(entries []entry, attempt int) (code int, ok bool) {
	for _, e := range entries {
		if e.What == "end" && e.Attempt == attempt {
			return e.Code, true
		}
	}
	return 0, false
}

const clock = "15:04:05.000"
