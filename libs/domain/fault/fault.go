// Package fault is the closed set of error kinds that the whole system speaks.
//
// A kind is itself an error, so callers ask errors.Is(err, fault.Conflict) and
// never compare strings. An [Error] gives a kind its details: the field that is
// wrong, a stable code, and what the user can do about it. Kinds cross the wire
// in one place each way (libs/platform/rpc). The package is not a list of every
// failure: a package with a failure of its own defines a type whose Is method
// answers to one of these kinds.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind is what sort of failure it is, and so what a caller may do next.
type Kind string

// The kinds. Nothing else crosses a service boundary.
const (
	// Invalid: the request is wrong and will stay wrong; Fields say where.
	Invalid Kind = "invalid"
	// NotFound: what was named does not exist.
	NotFound Kind = "not found"
	// AlreadyExists: the name or key is taken by something different.
	AlreadyExists Kind = "already exists"
	// Conflict: somebody else decided first; re-read and decide again.
	Conflict Kind = "conflict"
	// Precondition: well formed, but not in this state (an illegal transition).
	Precondition Kind = "precondition"
	// Exhausted: a limit is reached; try again after RetryAfter.
	Exhausted Kind = "exhausted"
	// Unavailable: a dependency is away; the same call may succeed later.
	Unavailable Kind = "unavailable"
	// Denied: the caller may not do this.
	Denied Kind = "denied"
	// Internal: a bug or a broken invariant.
	Internal Kind = "internal"
)

// Error makes a kind an error, so that it can be the target of errors.Is.
func (k Kind) Error() string { return string(k) }

// Field is one wrong field of a request.
type Field struct {
	// Name is the API's path of the field, such as "retry.max_attempts".
	Name string
	// Problem says what is wrong and what would be right.
	Problem string
}

// Error is a failure with its details. The zero value is not useful: use [New].
type Error struct {
	Kind Kind
	// Message is one lower-case sentence without the kind.
	Message string
	// Code is stable and machine-readable, such as "JOB_NOT_FOUND"; may be empty.
	Code string
	// Advice is what the user can do next; may be empty.
	Advice string
	// Fields are the wrong fields of an Invalid request.
	Fields []Field
	// RetryAfter is when an Exhausted or Unavailable call is worth repeating; 0 = unknown.
	RetryAfter time.Duration
	// Err is the cause; may be nil.
	Err error
}

// New returns an error of a kind.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of a kind that has a cause.
func Wrap(k Kind, err error, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...), Err: err}
}

// WithCode returns e with a stable code and advice.
func (e *Error) WithCode(code, advice string) *Error {
	e.Code, e.Advice = code, advice
	return e
}

// Error says what happened, field by field, and then the cause.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for i, f := range e.Fields {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		b.WriteString(f.Name + ": " + f.Problem)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Is reports whether target is e's kind.
func (e *Error) Is(target error) bool { k, ok := target.(Kind); return ok && k == e.Kind }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of err: that of the outermost [Error], else the kind
// that err is or answers to, else Internal.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	for _, k := range []Kind{Invalid, NotFound, AlreadyExists, Conflict, Precondition, Exhausted, Unavailable, Denied} {
		if errors.Is(err, k) {
			return k
		}
	}
	return Internal
}

// Fields collects the wrong fields of one request, so that a caller hears of
// all of them at once. The zero value is ready.
type Fields []Field

// Add records that a field is wrong.
func (f *Fields) Add(name, format string, args ...any) {
	*f = append(*f, Field{Name: name, Problem: fmt.Sprintf(format, args...)})
}

// Err returns nil where no field is wrong, else an Invalid error about what.
func (f Fields) Err(what string) error {
	if len(f) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Message: what + " is not valid", Code: "VALIDATION", Fields: f, Advice: "correct the named fields and send it again"}
}
