package job

import (
	"fmt"
	"time"

	"hodei.dev/libs/domain/unit"
)

// Category is why an attempt failed, in one word (R1.6).
type Category string

// The categories. Their codes and advice are in [Causes].
const (
	CategoryExitCode           Category = "EXIT_CODE"
	CategorySignal             Category = "SIGNAL"
	CategoryCommandNotFound    Category = "COMMAND_NOT_FOUND"
	CategoryPermissionDenied   Category = "PERMISSION_DENIED"
	CategoryOutOfMemory        Category = "OUT_OF_MEMORY"
	CategoryTimeout            Category = "TIMEOUT"
	CategoryQueueTimeout       Category = "QUEUE_TIMEOUT"
	CategoryCancelled          Category = "CANCELLED"
	CategoryWorkerLost         Category = "WORKER_LOST"
	CategoryDispatchFailed     Category = "DISPATCH_FAILED"
	CategoryProvisioningFailed Category = "PROVISIONING_FAILED"
	CategoryInfrastructure     Category = "INFRASTRUCTURE"
	CategoryValidation         Category = "VALIDATION"
)

// Cause is what is known about a category.
type Cause struct {
	Category Category
	// Code is stable: scripts may match it.
	Code string
	// Infrastructure: the platform lost the attempt, not the job's own command.
	Infrastructure bool
	// Retried says whether a retry policy has the category.
	Retried Retried
	// Advice is what the user can do next.
	Advice string
}

// Retried says when a retry policy has a category.
type Retried string

// The answers.
const (
	// ByDefault: unless the policy names others of its kind.
	ByDefault Retried = "by default"
	// IfNamed: another attempt would most likely fail the same way.
	IfNamed Retried = "if named"
	// Never: another attempt cannot help, or nobody wants it.
	Never Retried = "never"
)

// codeUnknown is the code of what is no category.
const codeUnknown = "UNKNOWN"

// Causes lists every category (R1.6); docs/errors.md is made from it.
var Causes = []Cause{
	{CategoryExitCode, "JOB_EXIT_CODE", false, ByDefault, "read the job's output: `hodei job logs ID`"},
	{CategorySignal, "JOB_SIGNAL", false, ByDefault, "the command was killed from inside or crashed; read its output: `hodei job logs ID`"},
	{CategoryCommandNotFound, "JOB_COMMAND_NOT_FOUND", false, IfNamed, "check the spelling and the worker's PATH, or give the full path of the program"},
	{CategoryPermissionDenied, "JOB_PERMISSION_DENIED", false, IfNamed, "make the program executable for the user that jobs run as"},
	{CategoryOutOfMemory, "JOB_OUT_OF_MEMORY", false, ByDefault, "ask for more memory: `--memory`"},
	{CategoryTimeout, "JOB_TIMEOUT", false, ByDefault, "give it longer: `--timeout`, or find out what it waits for: `hodei job logs ID`"},
	{CategoryQueueTimeout, "JOB_QUEUE_TIMEOUT", false, Never, "see why it waited: `hodei job history ID`; add workers or give it longer: `--queue-timeout`"},
	{CategoryCancelled, "JOB_CANCELLED", false, Never, "nothing to do; `hodei job retry ID` runs it again"},
	{CategoryWorkerLost, "WORKER_LOST", true, ByDefault, "see what became of the worker: `hodei worker get ID`; `hodei job retry ID` runs it again"},
	{CategoryDispatchFailed, "DISPATCH_FAILED", true, ByDefault, "see `hodei status` and the registry's log; `hodei job retry ID` runs it again"},
	{CategoryProvisioningFailed, "PROVISIONING_FAILED", true, ByDefault, "see `hodei provider get NAME` and the provisioner's log"},
	{CategoryInfrastructure, "INFRASTRUCTURE", true, ByDefault, "see the worker's log; `hodei job retry ID` runs it again"},
	{CategoryValidation, "JOB_VALIDATION", false, Never, "correct what the message names and queue the job again"},
}

// CauseOf returns what is known about c; an unknown category is infrastructure.
func CauseOf(c Category) Cause {
	for _, k := range Causes {
		if k.Category == c {
			return k
		}
	}
	return Cause{Category: c, Code: codeUnknown, Infrastructure: true, Retried: ByDefault, Advice: "see the services' logs"}
}

// Failure says why an attempt or a job failed and what to do about it.
type Failure struct {
	Category Category `json:"category"`
	Code     string   `json:"code"`
	Message  string   `json:"message"`
	Advice   string   `json:"advice"`
}

// Fail returns the failure of a category with its code and advice.
func Fail(c Category, format string, args ...any) *Failure {
	k := CauseOf(c)
	return &Failure{Category: c, Code: k.Code, Message: fmt.Sprintf(format, args...), Advice: k.Advice}
}

// Usage is what an attempt's processes used, as measured by the agent.
type Usage struct {
	CPUUser   unit.Duration `json:"cpu_user"`
	CPUSystem unit.Duration `json:"cpu_system"`
	// MaxRSSBytes is the peak of memory; 0 = not measured.
	MaxRSSBytes int64 `json:"max_rss_bytes"`
}

// Result is how an attempt ended.
type Result struct {
	// ExitCode is nil when the command did not exit by itself.
	ExitCode *int `json:"exit_code,omitempty"`
	// Signal that killed the command; 0 = none.
	Signal int `json:"signal,omitempty"`
	// Failure is nil exactly when the attempt succeeded.
	Failure *Failure `json:"failure,omitempty"`
	Usage   Usage    `json:"usage"`
	// StartedAt and FinishedAt are by the worker's clock; zero when it never started.
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// LogRef is where the output is: "hodei-log:<job>/<attempt>".
	LogRef string `json:"log_ref,omitempty"`
	// LogBytes were written; LogDropped were cut because the log was full.
	LogBytes   int64 `json:"log_bytes"`
	LogDropped int64 `json:"log_dropped,omitempty"`
}

// State is the terminal state that a result alone leads to.
func (r Result) State() State {
	switch {
	case r.Failure == nil:
		return StateSucceeded
	case r.Failure.Category == CategoryCancelled:
		return StateCancelled
	case r.Failure.Category == CategoryTimeout, r.Failure.Category == CategoryQueueTimeout:
		return StateTimedOut
	default:
		return StateFailed
	}
}

// LogRef names the output of one attempt.
func LogRef(jobID string, attempt int) string { return fmt.Sprintf("hodei-log:%s/%d", jobID, attempt) }
