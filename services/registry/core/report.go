package core

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
)

// maxMessage bounds what an agent may say about a failure.
const maxMessage = 4 << 10

// Report is how an attempt ended, as its agent tells it.
type Report struct {
	JobID    string
	Attempt  int
	ExitCode *int
	Signal   int
	// Category is empty when the command succeeded.
	Category, Message     string
	CPUUser, CPUSystem    time.Duration
	MaxRSSBytes           int64
	StartedAt, FinishedAt time.Time
	LogBytes, LogDropped  int64
}

// Result turns a report into the result that is recorded. What contradicts
// itself, or claims what the log does not know of, is corrected, never trusted:
// success needs exit code 0, and a cancel somebody who asked for it.
func (r Report) Result(j job.Job) job.Result {
	out := job.Result{
		ExitCode: r.ExitCode, Signal: max(r.Signal, 0),
		Usage: job.Usage{
			CPUUser: unit.Duration(max(r.CPUUser, 0)), CPUSystem: unit.Duration(max(r.CPUSystem, 0)), MaxRSSBytes: max(r.MaxRSSBytes, 0),
		},
		StartedAt: r.StartedAt.UTC(), FinishedAt: r.FinishedAt.UTC(), LogRef: job.LogRef(r.JobID, r.Attempt),
		LogBytes: max(r.LogBytes, 0), LogDropped: max(r.LogDropped, 0),
	}
	category, message := job.Category(r.Category), Clean(r.Message, maxMessage)
	switch {
	case category == "":
		category, message = r.implied()
	case !reportable(category):
		message = fmt.Sprintf("the agent reported the category %q: %s", Clean(r.Category, 64), message)
		category = job.CategoryInfrastructure
	case category == job.CategoryCancelled && j.Cancel == nil:
		message = "the agent ended it as cancelled, and nobody had asked for that: " + message
		category = job.CategoryInfrastructure
	}
	if category != "" {
		if message == "" {
			message = strings.ToLower(strings.ReplaceAll(string(category), "_", " "))
		}
		out.Failure = job.Fail(category, "%s", message)
	}
	return out
}

// implied is the category of a report that names none.
func (r Report) implied() (job.Category, string) {
	switch {
	case r.Signal > 0:
		return job.CategorySignal, fmt.Sprintf("killed by signal %d", r.Signal)
	case r.ExitCode == nil:
		return job.CategoryInfrastructure, "the agent reported neither an exit code nor a failure"
	case *r.ExitCode != 0:
		return job.CategoryExitCode, fmt.Sprintf("exited with %d", *r.ExitCode)
	}
	return "", ""
}

// reportable tells whether an agent may know of a category: what becomes of a
// job before a worker has it, or without its worker, is for others to say.
func reportable(c job.Category) bool {
	switch c {
	case job.CategoryExitCode, job.CategorySignal, job.CategoryCommandNotFound, job.CategoryPermissionDenied, job.CategoryOutOfMemory,
		job.CategoryTimeout, job.CategoryCancelled, job.CategoryInfrastructure, job.CategoryValidation:
		return true
	default:
		return false
	}
}

// Repeated tells whether the log has r already as the end of that attempt: its
// agent missed the ack.
func Repeated(j job.Job, workerID string, attempt int, r job.Result) bool {
	for _, a := range j.Attempts {
		if a.Number == attempt && a.WorkerID == workerID && a.Result != nil {
			return sameEnd(*a.Result, r) || neverRan(*a.Result) && neverRan(r)
		}
	}
	return false
}

// SameEnd tells whether two results tell of the same end.
func SameEnd(a, b job.Result) bool { return sameEnd(a, b) }

// neverRan tells whether a result is that of a cancel which was quicker than the
// start; registry and agent may both have seen it.
func neverRan(r job.Result) bool {
	return r.Failure != nil && r.Failure.Category == job.CategoryCancelled && r.ExitCode == nil && r.Signal == 0 && r.FinishedAt.Equal(r.StartedAt)
}

func sameEnd(a, b job.Result) bool {
	exit := func(r job.Result) int {
		if r.ExitCode == nil {
			return -1
		}
		return *r.ExitCode
	}
	category := func(r job.Result) job.Category {
		if r.Failure == nil {
			return ""
		}
		return r.Failure.Category
	}
	// The log keeps nanoseconds, but agents may round: a millisecond is the same end.
	near := func(x, y time.Time) bool { return x.Sub(y).Abs() < time.Millisecond }
	return exit(a) == exit(b) && a.Signal == b.Signal && category(a) == category(b) && near(a.StartedAt, b.StartedAt) && near(a.FinishedAt, b.FinishedAt)
}

// Clean makes a foreign text fit for the log: no NUL, valid UTF-8, at most limit bytes.
func Clean(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
