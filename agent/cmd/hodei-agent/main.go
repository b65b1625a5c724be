// Command hodei-agent is the agent of a worker: it runs the jobs that the platform
// hands to it. See hodei-agent --help.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"hodei.dev/agent"
	"hodei.dev/libs/domain/fault"
)

const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// execute is main with everything that it touches, and returns the exit code.
func execute(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cmd := command(getenv, stdout, stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "hodei-agent: %v\n", err)
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Advice != "" {
		fmt.Fprintln(stderr, e.Advice)
	}
	if _, misuse := errors.AsType[misused](err); misuse {
		return exitUsage
	}
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Code == agent.ConfigInvalid {
		return exitUsage
	}
	return exitFailed
}
