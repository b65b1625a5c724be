package run

import (
	"time"

	"hodei.dev/libs/platform/proctree"
)

// Spec is one attempt of a job.
type Spec struct {
	// JobID, Attempt and Namespace tell the job who it is: HODEI_JOB_ID,
	// HODEI_ATTEMPT and HODEI_NAMESPACE in its environment.
	JobID     string
	Attempt   int
	Namespace string
	// Command is the program and its arguments; with a Script, the arguments only.
	Command []string
	// Script is run instead of a program; nil: none.
	Script *Script
	// Env is added to the minimal environment, and wins over it except for HODEI_*.
	Env map[string]string
	// Cwd is the working directory, absolute or relative to WorkDir; default WorkDir.
	Cwd string
	// Stdin is fed to the job. Nil: it reads end of file at once.
	Stdin []byte
	// Timeout ends the attempt, counted from its start; 0 = none.
	Timeout time.Duration
	// KillGrace is the time between TERM and KILL; default 10 s, negative = none.
	KillGrace time.Duration
	// RunAs is the user that the job runs as; nil: the agent's own. Needs root.
	RunAs *Credential
	// Limits bound the whole job, as far as this machine enforces them.
	Limits proctree.Limits
	// WorkDir is made for the attempt with mode 0700, owned by RunAs, and removed
	// afterwards; it must not exist. HOME and TMPDIR point there, too. Every directory above it must be searchable by
	// RunAs. Default: a new one below the system's temporary directory.
	WorkDir string
}

// Script is a program as text.
type Script struct {
	// Interpreter runs it, such as "python3" or "bash -e"; looked up in the job's
	// PATH. Default: the script's own #! line, else sh.
	Interpreter string
	// Content is the text, byte for byte.
	Content []byte
}

// Credential is who a job runs as.
type Credential struct {
	UID, GID uint32
	// Groups are the supplementary groups; none by default.
	Groups []uint32
	// Name is for USER and LOGNAME; default the number.
	Name string
	// Home is for HOME; default the work directory.
	Home string
}

// The streams of a job.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// MaxChunk is the most bytes in one chunk.
const MaxChunk = 32 << 10

// Chunk is a piece of output.
type Chunk struct {
	// Stream is Stdout or Stderr.
	Stream string
	// Seq counts the chunks of the attempt from 1, over both streams, without gaps.
	Seq int64
	// Time is when it was read.
	Time time.Time
	// Data is any bytes, not lines; the receiver may keep it.
	Data []byte
	// Dropped is set in the last chunk of a stream that lost bytes, without Data.
	Dropped int64
}

// Sink takes the output of a job. Calls come one after the other. A call may block
// for as long as it likes: the job's writes then block, too, and the result waits.
// After an error the sink is not called again and the rest counts as dropped, so
// a sink that gives up must return one.
type Sink interface {
	Write(Chunk) error
}

// The categories of failures (R1.6) that an attempt can end with.
const (
	CommandNotFound  = "COMMAND_NOT_FOUND"
	PermissionDenied = "PERMISSION_DENIED"
	ExitCode         = "EXIT_CODE"
	Signal           = "SIGNAL"
	OutOfMemory      = "OUT_OF_MEMORY"
	Timeout          = "TIMEOUT"
	Cancelled        = "CANCELLED"
	Infrastructure   = "INFRASTRUCTURE"
	Validation       = "VALIDATION"
)

// NoExitCode is the ExitCode of a job that was ended by a signal or never ran.
const NoExitCode = -1

// Result is how an attempt ended.
type Result struct {
	// ExitCode is the main process's own, 0 to 255, also after a timeout or cancel
	// that it answered by exiting. As in a shell, 127 is a command that was not
	// found and 126 one that could not be executed. Else NoExitCode.
	ExitCode int
	// Signal is the signal that ended the main process; 0 = none.
	Signal int
	// Category is empty for success, else one of the constants.
	Category string
	// Code is stable and finer than the category, Message says what happened, and
	// Advice what the user can do.
	Code, Message, Advice string
	// StartedAt and FinishedAt bound the life of the main process; both are the
	// time of the refusal where it never started.
	StartedAt, FinishedAt time.Time
	// Usage is what the job used.
	Usage Usage
	// Enforced says which limits were enforced.
	Enforced proctree.Enforced
	// Started says whether the job's program began to run.
	Started bool
	// TimedOut, Cancelled and OOMKilled are facts behind the category: at most one
	// of the first two, and never for a job that ended by itself before.
	TimedOut, Cancelled, OOMKilled bool
	// Dropped counts the bytes of output that were not delivered.
	Dropped int64
}

// Succeeded says whether the job did what it was asked to.
func (r Result) Succeeded() bool { return r.Category == "" }

// Usage is what a job used: with cgroups all its processes, without them the main
// process and the children that it waited for.
type Usage struct {
	CPUUser, CPUSystem time.Duration
	// MaxRSSBytes is the most memory of the whole job where a memory limit is
	// enforced (page cache included), else that of its largest process, and then
	// never less than the agent's own size: a child counts from before its exec.
	MaxRSSBytes int64
}
