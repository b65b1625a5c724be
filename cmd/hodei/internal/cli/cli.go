// Package cli is the command line `hodei`: its commands, their flags, what they
// print and the codes that they end with.
//
// stdout carries only what was asked for; everything else goes to stderr. The exit
// codes are 0, 1 refused or failed, 2 usage, 3 server unreachable, 4 not found;
// `run` and `job wait` end with the job's own. It decides nothing about jobs: that
// is the server's.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/libs/platform/rpc"
)

// DefaultServer is where the clients' door is unless told otherwise.
const DefaultServer = "127.0.0.1:7433"

// Environment variables that stand for flags.
const (
	envServer    = "HODEI_SERVER"
	envNamespace = "HODEI_NAMESPACE"
)

// How long commands that follow a job wait for a server that is away.
const (
	// firstContact is for a server that has not answered yet: it may be starting.
	firstContact = 3 * time.Second
	// reconnect is for one that has: it is restarting.
	reconnect = 30 * time.Second
	// answerIn bounds a call with one answer.
	answerIn = 30 * time.Second
)

// Process is what a command line has of its process.
type Process struct {
	// Args without the program's name.
	Args []string
	// Environ in the form of os.Environ.
	Environ []string
	Stdin   io.Reader
	// Stdout gets the result and nothing else.
	Stdout io.Writer
	Stderr io.Writer
	// Signals that ask for the end. The first ends the command's context, unless the
	// command takes them itself (`run`); nil = none.
	Signals <-chan os.Signal
	// Abort is called by a second signal that a command does not heed; nil = nothing.
	Abort func()

	// Tests shorten these; 0 = as above.
	firstContact, reconnect time.Duration
}

// Main runs the program and returns its exit code. extra are commands beyond the
// client's own, such as the one that runs the services; their context ends with
// the first SIGINT or SIGTERM, and a second one ends the process.
func Main(extra ...*cobra.Command) int {
	signals := make(chan os.Signal, 2)
	// For ever: one more Ctrl-C while it ends must not change how it ends.
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	return Execute(context.Background(), Process{
		Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Signals: distinct(signals, time.Now), Abort: func() { os.Exit(exitInterrupted) },
	}, extra...)
}

// sameWish is how close together two signals are one wish. `timeout` and some
// supervisors send theirs twice at once, to the process and to its group; nobody's
// second Ctrl-C comes so soon.
const sameWish = 100 * time.Millisecond

// distinct passes signals on, except those that follow another at once: the first of
// them asks for the end, and a second one would give up waiting for it.
func distinct(in <-chan os.Signal, now func() time.Time) <-chan os.Signal {
	out := make(chan os.Signal, cap(in))
	go func() {
		var last time.Time
		for s := range in {
			if at := now(); at.Sub(last) >= sameWish {
				last = at
				out <- s
			}
		}
	}()
	return out
}

// Execute is [Main] for a test or a larger program.
func Execute(ctx context.Context, p Process, extra ...*cobra.Command) int {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := newApp(p)
	defer a.close()
	done := make(chan struct{})
	defer close(done)
	go a.heed(p, cancel, done)

	root := a.root(extra)
	root.SetArgs(p.Args)
	root.SetIn(p.Stdin)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	return a.finish(root.ExecuteContext(ctx))
}

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      map[string]string
	now      func() time.Time

	firstContact, reconnect time.Duration

	server, output, correlationID string
	remote                        *remote

	// claimed: the command takes signals itself, from interrupts.
	claimed    atomic.Bool
	interrupts chan os.Signal
}

func newApp(p Process) *app {
	a := &app{
		in: p.Stdin, out: p.Stdout, err: p.Stderr, env: map[string]string{}, now: time.Now,
		firstContact: firstContact, reconnect: reconnect, interrupts: make(chan os.Signal, 2),
	}
	if p.firstContact > 0 {
		a.firstContact = p.firstContact
	}
	if p.reconnect > 0 {
		a.reconnect = p.reconnect
	}
	for _, kv := range p.Environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			a.env[k] = v
		}
	}
	return a
}

// heed hands signals to the command that has claimed them, else ends its context.
func (a *app) heed(p Process, cancel context.CancelFunc, done <-chan struct{}) {
	asked := false
	for {
		select {
		case <-done:
			return
		case s := <-p.Signals:
			switch {
			case a.claimed.Load():
				a.interrupts <- s
			case !asked:
				asked = true
				cancel()
			case p.Abort != nil:
				p.Abort()
			}
		}
	}
}

// claim makes the command the receiver of signals.
func (a *app) claim() <-chan os.Signal {
	a.claimed.Store(true)
	return a.interrupts
}

// note tells the user something that is not the result.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.err, "hodei: "+format+"\n", args...)
}

func (a *app) json() bool { return a.output == "json" }

// call is who asks: the user of the operating system, as claimed.
func (a *app) call() rpc.Call {
	name := a.env["USER"]
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	clean := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, name)
	if clean == "" {
		clean = "unknown"
	}
	return rpc.Call{Actor: "user/" + clean[:min(len(clean), 100)], CorrelationID: a.correlationID}
}

func (a *app) root(extra []*cobra.Command) *cobra.Command {
	root := &cobra.Command{
		Use:   "hodei",
		Short: "run jobs on throw-away workers, and ask what became of them",
		Long: "hodei runs jobs (commands and scripts) on throw-away workers. Every change is an event that can be asked for later.\n\n" +
			"Exit codes: 0 done, 1 refused or failed, 2 usage, 3 server unreachable, 4 not found; `run` and `job wait` end with the job's own.\n" +
			"Ids may be shortened to any unique prefix.",
		Example:       "  hodei run -- echo hello\n  hodei job list --state FAILED --since 1h\n  hodei audit trace JOB",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return Usage("-o %q: text or json", a.output)
			}
			if a.correlationID != "" {
				if err := rpc.ValidateCorrelationID(a.correlationID); err != nil {
					return Usage("--correlation-id: %v", err)
				}
			}
			return nil
		},
	}
	group(root)
	server := a.env[envServer]
	if server == "" {
		server = DefaultServer
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", server, "`ADDRESS` of the server, host:port or unix:///path (HODEI_SERVER)")
	flags.StringVarP(&a.output, "output", "o", "text", "`FORMAT` of the result: text or json")
	flags.StringVar(&a.correlationID, "correlation-id", "", "queue and change things under this correlation `ID`; the server makes one where none is given")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Usage("%v; see `%s --help`", err, cmd.CommandPath())
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(
		a.runCommand(), a.submitCommand(), a.jobCommand(), a.workerCommand(), a.providerCommand(),
		a.auditCommand(), a.deadLetterCommand(), a.statusCommand(), a.doctorCommand(), a.benchCommand(), a.versionCommand(), a.completionCommand(),
	)
	root.AddCommand(extra...)
	return root
}

// group makes cmd a command that only has commands: alone it prints its help, and
// what it does not know it refuses, with suggestions.
func group(cmd *cobra.Command) *cobra.Command {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return Usage("unknown command %q for `%s`%s See `%s --help`", args[0], cmd.CommandPath(), sentence(hint), cmd.CommandPath())
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// sentence ends a text that has no end yet.
func sentence(s string) string {
	if strings.HasSuffix(s, "?") {
		return s
	}
	return s + "."
}

// args takes between least and most arguments, named as the user knows them.
func args(least, most int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		switch {
		case len(given) < least:
			return Usage("%s is missing; see `%s --help`", names, cmd.CommandPath())
		case len(given) > most:
			return Usage("unexpected argument %q; see `%s --help`", given[most], cmd.CommandPath())
		}
		if slices.Contains(given, "") {
			return Usage("%s is empty; see `%s --help`", names, cmd.CommandPath())
		}
		return nil
	}
}

// none takes no arguments.
func none() cobra.PositionalArgs { return args(0, 0, "") }
