package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hodei.dev/agent"
	"hodei.dev/libs/platform/bootstrap"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
)

// misused is an error of the command line, the environment or the files they name.
type misused struct{ error }

func (m misused) Unwrap() error { return m.error }

func misuse(format string, args ...any) error { return misused{fmt.Errorf(format, args...)} }

// settings are what the command line says.
type settings struct {
	bootstrapFD               int
	server, worker, tokenFile string
	workDir, runAs            string
	logLevel, logFormat       string
	getenv                    func(string) string
	stderr                    io.Writer
}

func command(getenv func(string) string, stdout, stderr io.Writer) *cobra.Command {
	s := settings{getenv: getenv, stderr: stderr}
	cmd := &cobra.Command{
		Use:   "hodei-agent",
		Short: "hodei-agent runs the jobs that are handed to a worker",
		Long: `hodei-agent runs the jobs that are handed to a worker.

It registers the worker with a token that is good once, runs what it is told to,
sends output and results, and ends when the worker's life ends. When it is told to
stop (SIGTERM) it cancels what runs, reports it, and ends within 15 s. When it
hears nothing from the platform for the length of its lease it ends what runs. An
agent that no provisioner started has a guard, a second process that does so when
the agent was stopped, hangs or was killed.

A provisioner starts it with --bootstrap-fd. To bring a machine of your own, make a
worker of a provider of type "external" and give its id and token file.

The variables HODEI_SERVER, HODEI_WORKER, HODEI_TOKEN_FILE, HODEI_WORK_DIR,
HODEI_RUN_AS, HODEI_LOG_LEVEL and HODEI_LOG_FORMAT stand for flags that are not
given. The token itself is taken from a file or a descriptor only. Jobs see nothing
of the agent's environment.

It exits with 0 when it was stopped or the worker's life was over, 1 when it failed
or was refused, 2 when it was started wrongly.`,
		Example:       "  hodei-agent --server registry.example.org:7434 --worker 0198c0de-7a10-7c3e-9c1f-0a4f5b6c7d8e \\\n    --token-file /etc/hodei/token --work-dir /var/lib/hodei-agent --run-as nobody",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("unknown argument %q; see hodei-agent --help", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	f := cmd.Flags()
	f.IntVar(&s.bootstrapFD, bootstrap.Flag, 0, "read everything from the inherited descriptor `FD`, as a provisioner passes it")
	f.StringVar(&s.server, "server", "", "`ADDRESS` of the registry's door for agents, host:port or unix:///path")
	f.StringVar(&s.worker, "worker", "", "`ID` of the worker")
	f.StringVar(&s.tokenFile, "token-file", "", "`FILE` with the registration token")
	f.StringVar(&s.workDir, "work-dir", "", "`DIR` for jobs and state, of this agent alone (default /var/lib/hodei-agent/ID for root, else below the user's cache directory)")
	f.StringVar(&s.runAs, "run-as", "", "`USER` that jobs run as: a name, uid or uid:gid; needs root (default the agent's own)")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&s.logFormat, "log-format", "json", "json or text")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misused{err} })
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(&cobra.Command{
		Use: "guard DIR", Short: "end what an agent runs when the agent cannot; agents start it", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return agent.Guard(args[0], slog.New(slog.NewJSONHandler(stderr, nil)))
		},
	}, &cobra.Command{
		Use: "version", Short: "print the version", Example: "  hodei-agent version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, "hodei-agent", process.Version())
			return err
		},
	})
	return cmd
}

// run reads what the agent needs and runs it.
func (s *settings) run(cmd *cobra.Command) error {
	boot := cmd.Flags().Changed(bootstrap.Flag)
	for name, to := range map[string]*string{
		"server": &s.server, "worker": &s.worker, "token-file": &s.tokenFile, "work-dir": &s.workDir, "run-as": &s.runAs,
		"log-level": &s.logLevel, "log-format": &s.logFormat,
	} {
		logging := strings.HasPrefix(name, "log-")
		if cmd.Flags().Changed(name) {
			if boot && !logging {
				return misuse("--%s is in the bootstrap: use either it or --%s", name, bootstrap.Flag)
			}
			continue
		}
		if v := s.getenv("HODEI_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); v != "" && (logging || !boot) {
			*to = v
		}
	}
	read := s.fromFlags
	if boot {
		read = s.fromBootstrap
	}
	cfg, err := read()
	if err != nil {
		return err
	}
	tel, err := telemetry.Setup(cmd.Context(), telemetry.Options{
		Service: "agent", Version: process.Version(), LogLevel: s.logLevel, LogFormat: s.logFormat, LogWriter: s.stderr,
	})
	if err != nil {
		return misused{err}
	}
	cfg.Version, cfg.Log = process.Version(), tel.Log
	if cfg.RunAs == nil && os.Geteuid() == 0 {
		cfg.Log.Warn("jobs run as root: name another user with --run-as")
	}
	return agent.Run(cmd.Context(), cfg)
}

func (s *settings) fromBootstrap() (agent.Config, error) {
	const firstInherited = 3
	if s.bootstrapFD < firstInherited {
		return agent.Config{}, misuse("--%s %d: an inherited descriptor is %d or higher", bootstrap.Flag, s.bootstrapFD, firstInherited)
	}
	b, err := bootstrap.Read(s.bootstrapFD)
	if err != nil {
		return agent.Config{}, misused{err}
	}
	cfg := agent.Config{
		Server: b.AgentAddress, WorkerID: b.WorkerID, Token: b.Token, WorkDir: b.WorkDir,
	}
	if b.RunAs != nil {
		cfg.RunAs = &agent.User{UID: b.RunAs.UID, GID: b.RunAs.GID, Groups: b.RunAs.Groups, Name: b.RunAs.Name, Home: b.RunAs.Home}
	}
	// What the kernel holds for the worker as a whole needs no second limit.
	if !b.Limits.MemoryEnforced {
		cfg.Limits.MemoryBytes = b.Limits.MemoryBytes
	}
	if !b.Limits.CPUEnforced {
		cfg.Limits.CPUMillis = b.Limits.CPUMillis
	}
	return cfg, nil
}

func (s *settings) fromFlags() (agent.Config, error) {
	var missing []string
	for _, f := range []struct{ name, value string }{{"--server", s.server}, {"--worker", s.worker}, {"--token-file", s.tokenFile}} {
		if f.value == "" {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return agent.Config{}, misuse("%s must be given (or --%s); see hodei-agent --help", strings.Join(missing, ", "), bootstrap.Flag)
	}
	raw, err := os.ReadFile(s.tokenFile)
	if err != nil {
		return agent.Config{}, misuse("reading the token: %w", err)
	}
	cfg := agent.Config{Server: s.server, WorkerID: s.worker, Token: strings.TrimSpace(string(raw)), WorkDir: s.workDir}
	// Nobody else on this machine ends what it runs when it cannot.
	if cfg.Guard, err = os.Executable(); err != nil {
		return agent.Config{}, fmt.Errorf("finding the own program: %w", err)
	}
	if cfg.Token == "" {
		return agent.Config{}, misuse("the token file %s is empty", s.tokenFile)
	}
	if cfg.WorkDir == "" {
		if cfg.WorkDir, err = defaultWorkDir(s.worker); err != nil {
			return agent.Config{}, err
		}
	}
	if s.runAs != "" {
		if cfg.RunAs, err = lookUp(s.runAs); err != nil {
			return agent.Config{}, err
		}
	}
	return cfg, nil
}

// defaultWorkDir is no place where others could have put something.
func defaultWorkDir(worker string) (string, error) {
	base := "/var/lib"
	if os.Geteuid() != 0 {
		var err error
		if base, err = os.UserCacheDir(); err != nil {
			return "", misuse("--work-dir must be given: %w", err)
		}
	}
	return filepath.Join(base, "hodei-agent", filepath.Base(worker)), nil
}

// lookUp finds a user by name, uid or uid:gid.
func lookUp(name string) (*agent.User, error) {
	uid, gid, numbers := strings.Cut(name, ":")
	u, err := user.Lookup(uid)
	// LookupId takes larger numbers modulo 2^32: 4294967296 would be root.
	if _, small := strconv.ParseUint(uid, 10, 32); err != nil && small == nil {
		u, err = user.LookupId(uid)
	}
	if err != nil && !numbers {
		return nil, misuse("user %q is not known on this machine; one that is not can be given as uid:gid", name)
	}
	var out agent.User
	if err == nil {
		out.Name = u.Username // HOME stays the job's own directory: it is there and writable
		if !numbers {
			gid = u.Gid
		}
		uid = u.Uid
	}
	for _, id := range []struct {
		text string
		to   *uint32
	}{{uid, &out.UID}, {gid, &out.GID}} {
		n, err := strconv.ParseUint(id.text, 10, 32)
		if err != nil {
			return nil, misuse("user %q is neither a name nor uid:gid", name)
		}
		*id.to = uint32(n)
	}
	return &out, nil
}
