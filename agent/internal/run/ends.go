package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// refused is the result of an attempt whose program never started.
func refused(category, code, message, advice string) *Result {
	return &Result{ExitCode: NoExitCode, Category: category, Code: code, Message: message, Advice: advice}
}

func notFound(name, why string) *Result {
	r := refused(CommandNotFound, "COMMAND_NOT_FOUND", fmt.Sprintf("the command %q was not found on the worker: %s", name, why),
		"check the spelling, install it on the worker, or give its full path")
	r.ExitCode = 127
	return r
}

func denied(name, why string) *Result {
	r := refused(PermissionDenied, "PERMISSION_DENIED", fmt.Sprintf("the command %q may not be executed: %s", name, why),
		"make the file executable for the user that jobs run as")
	r.ExitCode = 126
	return r
}

// notExecutable tells a missing program from a forbidden one.
func notExecutable(name string, err error) *Result {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return notFound(name, "no such file")
	}
	if errors.Is(err, fs.ErrPermission) {
		return denied(name, "permission denied")
	}
	return denied(name, err.Error())
}

func infrastructure(code string, err error) *Result {
	return refused(Infrastructure, code, err.Error(), "this is the worker's failure and not the job's: look at its disk, limits and log, then run the job again")
}

// startFailed says why the kernel refused to start a program that looked right.
func startFailed(err error, name, cwd string, spec Spec) *Result {
	switch {
	case errors.Is(err, syscall.E2BIG):
		return refused(Validation, "COMMAND_TOO_LONG", "the command and its environment are longer than the worker's system allows",
			"pass large values by standard input or in a file")
	case errors.Is(err, syscall.ENOENT):
		return notFound(name, "the interpreter in its first line, or its loader, does not exist")
	case errors.Is(err, syscall.ENOEXEC):
		r := denied(name, "it is neither a program of this machine's kind nor a script with a #! line")
		r.Code, r.Advice = "NOT_EXECUTABLE", "add a #! line, name an interpreter, or use a program built for this machine"
		return r
	case errors.Is(err, syscall.EPERM) && spec.RunAs != nil && os.Geteuid() != 0:
		return infrastructure("RUN_AS_DENIED", fmt.Errorf("running as user %d needs an agent that runs as root: %w", spec.RunAs.UID, err))
	case errors.Is(err, fs.ErrPermission):
		if dir := unsearchable(cwd, spec.RunAs); dir != "" {
			if spec.Cwd != "" {
				return refused(PermissionDenied, "CWD_DENIED", "the job's user may not enter "+dir, "use a working directory that this user may enter")
			}
			return infrastructure("WORK_DIR_DENIED", fmt.Errorf("the job's user may not enter %s, which its work directory is below", dir))
		}
		return denied(name, "permission denied")
	}
	return infrastructure("START_FAILED", fmt.Errorf("starting %s: %w", name, err))
}

// unsearchable is the first directory on the way to path that the user may not
// enter by its mode; empty when there is none.
func unsearchable(path string, c *Credential) string {
	if c == nil || c.UID == 0 {
		return ""
	}
	var up []string
	for p := filepath.Clean(path); ; p = filepath.Dir(p) {
		up = append(up, p)
		if p == filepath.Dir(p) {
			break
		}
	}
	slices.Reverse(up)
	for _, p := range up {
		info, err := os.Stat(p)
		if err != nil {
			return p
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return ""
		}
		bit := os.FileMode(0o001)
		switch {
		case st.Uid == c.UID:
			bit = 0o100
		case st.Gid == c.GID || slices.Contains(c.Groups, st.Gid):
			bit = 0o010
		}
		if info.Mode()&bit == 0 {
			return p
		}
	}
	return ""
}

// classify fills in what the end of a started job means. Stopped is why the agent
// ended it; empty when it ended by itself.
func (r *Result) classify(ps *os.ProcessState, stopped, reason string, spec Spec) {
	r.ExitCode = NoExitCode
	if ws, ok := ps.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		r.Signal = int(ws.Signal())
	} else {
		r.ExitCode = ps.ExitCode()
	}
	how := fmt.Sprintf("exit code %d", r.ExitCode)
	if r.Signal != 0 {
		how = fmt.Sprintf("signal %d (%v)", r.Signal, syscall.Signal(r.Signal))
	}
	switch {
	case stopped == Timeout:
		r.TimedOut = true
		r.set(Timeout, "EXECUTION_TIMEOUT", "the job did not finish within "+spec.Timeout.String()+" and was ended with "+how,
			"raise the execution timeout, or find out what the job was waiting for")
	case stopped == Cancelled:
		r.Cancelled = true
		if reason != "" {
			reason = " (" + reason + ")"
		}
		r.set(Cancelled, "CANCELLED", "the job was cancelled"+reason+" and ended with "+how, "")
	case r.OOMKilled && (r.Signal != 0 || r.ExitCode != 0):
		r.set(OutOfMemory, "OUT_OF_MEMORY", "the job needed more than its memory limit of "+bytesText(spec.Limits.MemoryBytes)+" and was ended with "+how,
			"raise the memory limit or make the job use less")
	case r.Signal != 0:
		advice := "a crash: look at the job's last output"
		if r.Signal == int(syscall.SIGKILL) {
			advice = "somebody, or the kernel because the machine was out of memory, killed it from outside: look at the machine's log"
		}
		r.set(Signal, "KILLED_BY_SIGNAL", "the job was ended by "+how, advice)
	case r.ExitCode != 0:
		r.set(ExitCode, "EXIT_"+strconv.Itoa(r.ExitCode), "the job ended with "+how, exitAdvice(r.ExitCode))
	}
}

func (r *Result) set(category, code, message, advice string) {
	r.Category, r.Code, r.Message, r.Advice = category, code, message, advice
}

func exitAdvice(code int) string {
	switch {
	case code == 126:
		return "126 is how shells say that a command could not be executed: look at its permissions"
	case code == 127:
		return "127 is how shells say that a command was not found: look at the job's PATH"
	case code > 128 && code < 160:
		return fmt.Sprintf("by convention this means that a process inside the job was ended by signal %d", code-128)
	}
	return "look at the job's output"
}

func bytesText(n int64) string {
	const mib = 1 << 20
	if n%mib == 0 {
		return strconv.FormatInt(n/mib, 10) + " MiB"
	}
	return strconv.FormatInt(n, 10) + " bytes"
}

// failedAt makes a refusal complete.
func (r *Result) failedAt(now time.Time) { r.StartedAt, r.FinishedAt = now, now }
