package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// chattyLines is what a chatty task prints.
const chattyLines = 2000

// chattyLine is its line number n.
func chattyLine(n int) string { return fmt.Sprintf("line %06d of a job that talks a lot\n", n) }

// task is the program of every job of the load: it writes the journal and does what
// its kind does. It returns its exit code.
func task(args []string) int {
	if len(args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: chaos task JOURNAL KIND [DURATION]")
		return 64
	}
	j, kind := journal{dir: args[0]}, args[1]
	for _, k := range kinds {
		if k.name != kind || k.run == nil {
			continue
		}
		t := run{journal: j, job: os.Getenv("HODEI_JOB_ID")}
		var err error
		if t.attempt, err = strconv.Atoi(os.Getenv("HODEI_ATTEMPT")); err != nil || t.job == "" {
			fmt.Fprintln(os.Stderr, "the job does not know who it is:", err)
			return 70
		}
		if len(args) > 2 {
			if t.lasts, err = time.ParseDuration(args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 64
			}
		}
		if err := t.do(k.run); err != nil {
			fmt.Fprintln(os.Stderr, "the journal:", err)
			return 74
		}
		return t.code
	}
	fmt.Fprintln(os.Stderr, "there is no task", kind)
	return 64
}

// run is one attempt of a job, from inside.
type run struct {
	journal journal
	job     string
	attempt int
	lasts   time.Duration
	lock    *os.File
	code    int
}

func (t *run) do(work func(*run)) error {
	lock, other, err := t.journal.claim(t.job, t.attempt)
	if err != nil {
		return err
	}
	t.lock = lock
	what := "start"
	if other != "" {
		what = "overlap"
	}
	self := entry{Job: t.job, Attempt: t.attempt, PID: os.Getpid(), What: what, Other: other}
	if err := t.journal.write(self); err != nil {
		return err
	}
	work(t)
	self.What, self.Other, self.Code = "end", "", t.code
	return t.journal.write(self)
}

func lasting(t *run) { time.Sleep(t.lasts) }

func failing(t *run) { t.code = 3 }

// flaky fails until one of its own attempts has failed before.
func flaky(t *run) {
	entries, err := t.journal.read()
	if err != nil {
		t.code = 74
		return
	}
	for _, e := range entries[t.job] {
		if e.What == "end" && e.Code == 1 {
			return
		}
	}
	t.code = 1
}

// deaf does not heed TERM.
func deaf(t *run) {
	signal.Ignore(syscall.SIGTERM)
	time.Sleep(t.lasts)
}

// daemon leaves a process behind that has left the session and holds the lock.
func daemon(t *run) {
	self, err := os.Executable()
	if err != nil {
		t.code = 74
		return
	}
	cmd := exec.Command(self, "sleep", "10m")
	cmd.ExtraFiles = []*os.File{t.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		t.code = 74
	}
	time.Sleep(t.lasts)
}

func chatty(*run) {
	w := bufio.NewWriter(os.Stdout)
	for n := range chattyLines {
		fmt.Fprint(w, chattyLine(n))
	}
	_ = w.Flush() // what is missing is seen in the log
}
