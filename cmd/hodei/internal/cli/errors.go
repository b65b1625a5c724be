package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/connectivity"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
)

// The exit codes. `run` and `job wait` have more; see outcome.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitNotFound    = 4
	exitInterrupted = 130
)

// usageError is a command that was called wrongly.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

// Usage returns an error of how a command was called: exit code 2.
func Usage(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// NoArgs refuses arguments, as a misuse.
func NoArgs(cmd *cobra.Command, given []string) error { return none()(cmd, given) }

// exitError ends the program with a code; what there was to say has been said.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// finish tells the user what went wrong and returns the exit code.
func (a *app) finish(err error) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	a.explain(err)
	_, misuse := errors.AsType[usageError](err)
	switch {
	case misuse:
		return exitUsage
	case errors.Is(err, fault.Unavailable):
		return exitUnreachable
	case errors.Is(err, fault.NotFound):
		return exitNotFound
	default:
		return exitFailed
	}
}

// explain prints an error: what happened, each field with its problem, what to do.
func (a *app) explain(err error) {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		a.note("%s", render.Plain(err.Error()))
		return
	}
	if a.unreachable(e) {
		a.note("cannot reach the server at %s: %s", a.server, render.Plain(plainCause(e.Error())))
		fmt.Fprintln(a.err, "what to do: start one with `hodei dev`, or name the one that runs with --server or "+envServer)
		return
	}
	bare := *e
	bare.Fields = nil
	a.note("%s", render.Plain(strings.Replace(err.Error(), e.Error(), bare.Error(), 1)))
	for _, f := range e.Fields {
		fmt.Fprintf(a.err, "  %s: %s\n", render.Plain(f.Name), render.Plain(f.Problem))
	}
	if e.Advice != "" {
		fmt.Fprintf(a.err, "what to do: %s\n", render.Plain(e.Advice))
	}
}

// unreachable tells a server that cannot be talked to from one that says itself
// that something is away.
func (a *app) unreachable(e *fault.Error) bool {
	if e.Kind != fault.Unavailable || e.Code != "" || a.remote == nil {
		return false
	}
	return a.remote.conn.GetState() != connectivity.Ready || strings.HasPrefix(e.Message, "connection error") || strings.HasPrefix(e.Message, "error reading")
}

// plainCause takes the reason out of gRPC's description of a connection error.
func plainCause(s string) string {
	if _, after, ok := strings.Cut(s, `desc = "`); ok {
		s = strings.TrimSuffix(after, `"`)
	}
	s = strings.TrimPrefix(s, "transport: ")
	return strings.TrimPrefix(s, "Error while dialing: ")
}

// say tells the user what happened to something, why, and what to do.
func (a *app) say(what, why, advice string) {
	if why != "" {
		what += ": " + why
	}
	a.note("%s", render.Plain(what))
	if advice != "" {
		fmt.Fprintln(a.err, "what to do: "+render.Plain(advice))
	}
}
