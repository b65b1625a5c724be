package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/telemetry"
)

// Command is how a process was called.
type Command struct {
	// Args without the program's name.
	Args []string
	// Environ in the form of os.Environ. OTEL_* variables are read from the process
	// itself.
	Environ []string
	// Stdout gets what a command was asked for.
	Stdout io.Writer
	// Stderr gets the log and the errors.
	Stderr io.Writer
}

// logged is an error that the log already tells.
type logged struct{ error }

// misused is an error of the flags.
type misused struct{ error }

func (m misused) Unwrap() error { return m.error }

// Execute is [Main] for a test or a larger program: it returns the exit code and
// stops the service when ctx ends.
func Execute[C any, P interface {
	*C
	Configured
}](ctx context.Context, s Service[C], c Command) int {
	root := rootCommand[C, P](s, c)
	root.SetArgs(c.Args)
	root.SetOut(c.Stdout)
	root.SetErr(c.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	if _, told := errors.AsType[logged](err); told {
		return ExitFailed
	}
	explain(c.Stderr, "hodei-"+s.Name, err)
	if _, misuse := errors.AsType[misused](err); misuse {
		return ExitUsage
	}
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Code == "CONFIG_INVALID" {
		return ExitUsage
	}
	return ExitFailed
}

// explain prints an error for a person, a line for each wrong field.
func explain(w io.Writer, program string, err error) {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || len(e.Fields) == 0 {
		fmt.Fprintf(w, "%s: %v\n", program, err)
		return
	}
	fmt.Fprintf(w, "%s: %s\n", program, e.Message)
	for _, f := range e.Fields {
		fmt.Fprintf(w, "  %s: %s\n", f.Name, f.Problem)
	}
	if e.Advice != "" {
		fmt.Fprintf(w, "%s\n", e.Advice)
	}
}

func rootCommand[C any, P interface {
	*C
	Configured
}](s Service[C], c Command) *cobra.Command {
	var file string
	var show, insecure bool
	load := func() (C, error) {
		cfg := s.Default()
		environ := c.Environ
		if insecure {
			environ = append(slices.Clone(environ), "HODEI_INSECURE=true")
		}
		return cfg, config.Load(&cfg, file, environ)
	}
	root := &cobra.Command{
		Use:   "hodei-" + s.Name,
		Short: "hodei-" + s.Name + " " + s.Short,
		Long: "hodei-" + s.Name + " " + s.Short + ".\n\nIt is configured by a YAML file and HODEI_* variables, which win; " +
			"--print-config shows every key and what is in effect.",
		Example:       "  hodei-" + s.Name + " --config /etc/hodei/" + s.Name + ".yaml",
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if show {
				return errors.Join(config.Print(c.Stdout, &cfg), err)
			}
			if err != nil {
				return err
			}
			return run(cmd.Context(), s, cfg, P(&cfg).CommonConfig(), telemetry.Options{LogWriter: c.Stderr})
		},
	}
	root.PersistentFlags().StringVar(&file, "config", "", "read the configuration from `FILE`")
	root.PersistentFlags().BoolVar(&insecure, "insecure", false, "serve clients, who are not authenticated yet, on an address that other machines reach")
	root.Flags().BoolVar(&show, "print-config", false, "print the configuration in effect, secrets masked, and exit")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misused{err} })
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(versionCommand("hodei-"+s.Name, c.Stdout))
	root.AddCommand(&cobra.Command{
		Use:     "ready",
		Short:   "ask the running service whether it is ready; exits 1 and says why where it is not",
		Example: "  hodei-" + s.Name + " ready --config /etc/hodei/" + s.Name + ".yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load()
			if err != nil {
				return err
			}
			return askReady(cmd.Context(), P(&cfg).CommonConfig().HealthListen, c.Stdout)
		},
	})
	if s.Migrate != nil {
		root.AddCommand(&cobra.Command{
			Use:     "migrate",
			Short:   "bring the database schema of the service up to date, then exit",
			Example: "  hodei-" + s.Name + " migrate --config /etc/hodei/" + s.Name + ".yaml",
			Args:    noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, err := load()
				if err != nil {
					return err
				}
				if err := s.Migrate(cmd.Context(), cfg); err != nil {
					return fmt.Errorf("migrating: %w", err)
				}
				return nil
			},
		})
	}
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return misused{fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())}
	}
	return nil
}

func versionCommand(name string, stdout io.Writer) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		Example: "  " + name + " version -o json",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			b := BuildOf(name)
			switch output {
			case "text":
				_, err := fmt.Fprintf(stdout, "%s %s\n", b.Name, b.Version)
				return err
			case "json":
				return json.NewEncoder(stdout).Encode(b)
			default:
				return misused{fmt.Errorf("output %q must be text or json", output)}
			}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}
