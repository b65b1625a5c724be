package cli

import (
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// waitForRoom is how long a job waits to be taken, unless --wait-for-room says otherwise.
const waitForRoom = 10 * time.Minute

// specFlags are the flags of `run` and `submit` that describe a job.
type specFlags struct {
	name, namespace, cwd, timeout, queueTimeout, cpu, memory string
	provider, id, idempotencyKey, script, interpreter        string
	description, preferred                                   string
	env, envFiles, labels, annotations, tags, required       []string
	priority, maxAttempts, infrastructureAttempts            int32
	retryOn                                                  []string
	backoffInitial, backoffMax                               string
	backoffFactor, backoffJitter                             float64
	stdin                                                    bool
	room                                                     time.Duration
}

func (f *specFlags) add(a *app, cmd *cobra.Command) {
	flags := cmd.Flags()
	// What comes after the first word of the command is the command's.
	flags.SetInterspersed(false)
	flags.StringVar(&f.name, "name", "", "the job's `NAME`; default: its program's")
	flags.StringVar(&f.namespace, "namespace", a.env[envNamespace], "the job's `NAMESPACE` (HODEI_NAMESPACE); default: default")
	flags.StringArrayVar(&f.env, "env", nil, "`KEY=VALUE` in the job's environment; may be repeated")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`FILE` of KEY=VALUE lines for the job's environment; --env wins; may be repeated")
	flags.StringVar(&f.cwd, "cwd", "", "absolute `DIRECTORY` on the worker to run in; default: a private one that is removed afterwards")
	flags.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` to find the job by; may be repeated")
	flags.StringArrayVar(&f.annotations, "annotation", nil, "`KEY=VALUE` that is kept with the job; may be repeated")
	flags.StringVar(&f.description, "description", "", "`TEXT` about the job, for people")
	flags.StringArrayVar(&f.tags, "tag", nil, "`TAG` that is kept with the job, for people; may be repeated")
	flags.Int32Var(&f.priority, "priority", 0, "`P` from -1000 to 1000; higher runs first")
	flags.StringVar(&f.timeout, "timeout", "", "an attempt may run for `DURATION`, such as 30s; default: 1h")
	flags.StringVar(&f.queueTimeout, "queue-timeout", "", "the job may wait for `DURATION` before it first starts; default: 24h")
	flags.Int32Var(&f.maxAttempts, "max-attempts", 0, "try the command up to `N` times; default: 1")
	flags.Int32Var(&f.infrastructureAttempts, "infrastructure-attempts", 0, "`N` attempts may be lost to the platform and made up for; 0 for commands that must never start twice; default: 3")
	flags.StringArrayVar(&f.retryOn, "retry-on", nil, "retry failures of `CATEGORY`, such as EXIT_CODE or WORKER_LOST, comma separated or repeated; default: those that another attempt may help")
	flags.StringVar(&f.backoffInitial, "backoff-initial", "", "wait `DURATION` before the second attempt; default: 1s")
	flags.Float64Var(&f.backoffFactor, "backoff-factor", 0, "multiply the wait by `X` (1 to 10) after each further failure; default: 2")
	flags.StringVar(&f.backoffMax, "backoff-max", "", "wait `DURATION` at most; default: 1m")
	flags.Float64Var(&f.backoffJitter, "backoff-jitter", 0, "let chance shorten each wait by up to `X` (0 to 1) of it; default: 0.5")
	flags.StringVar(&f.cpu, "cpu", "", "`CORES` to reserve, such as 2, 0.5 or 500m")
	flags.StringVar(&f.memory, "memory", "", "`BYTES` to reserve, such as 256Mi, 1G or 1048576")
	flags.StringVar(&f.provider, "provider", "", "`NAME` or id of the provider that has to run the job; default: any")
	flags.StringVar(&f.preferred, "prefer-provider", "", "`NAME` or id of the provider that runs the job while it fits and has room; else any other does")
	flags.StringArrayVar(&f.required, "require-label", nil, "`KEY=VALUE` that the provider has to have as a label; may be repeated")
	flags.StringVar(&f.id, "id", "", "the job's id, a `UUID` of your own making")
	flags.StringVar(&f.idempotencyKey, "idempotency-key", "", "`KEY` that makes the same job queued again the same job")
	flags.StringVar(&f.script, "script", "", "run the script in `FILE` (- = standard input) instead of a command; needs --interpreter")
	flags.StringVar(&f.interpreter, "interpreter", "", "`PROGRAM` that reads the script, such as sh or python3")
	flags.DurationVar(&f.room, "wait-for-room", waitForRoom, "bear for `DURATION` with a server that takes no more jobs; 0 does not wait")
	flags.BoolVarP(&f.stdin, "stdin", "i", false, "give the job this command's standard input; without it the job's is closed at once")
}

// spec is the job that the flags and the words after them describe.
func (f *specFlags) spec(a *app, cmd *cobra.Command, argv []string) (*schedulerv1.JobSpec, error) {
	s := &schedulerv1.JobSpec{
		Id: f.id, Name: f.name, Namespace: f.namespace, Command: argv, Cwd: f.cwd, Priority: f.priority,
		Timeout: f.timeout, QueueTimeout: f.queueTimeout, IdempotencyKey: f.idempotencyKey,
		Description: f.description, Tags: f.tags,
	}
	if err := f.work(a, s); err != nil {
		return nil, err
	}
	if err := f.maps(s); err != nil {
		return nil, err
	}
	if err := f.limits(cmd, s); err != nil {
		return nil, err
	}
	identify(s)
	return s, nil
}

// identify gives a job an id of ours unless it can be told apart already: then the
// same call may be repeated when its answer was lost.
func identify(s *schedulerv1.JobSpec) {
	if s.GetId() == "" && s.GetIdempotencyKey() == "" {
		s.Id = uuid.Must(uuid.NewV7()).String()
	}
}

// work is the command or script and its standard input.
func (f *specFlags) work(a *app, s *schedulerv1.JobSpec) error {
	switch {
	case f.script != "" && len(s.GetCommand()) > 0:
		return Usage("a job has a command or --script, not both")
	case f.script != "" && f.interpreter == "":
		return Usage("--script needs --interpreter: the program that reads the script, such as sh or python3")
	case f.script == "" && f.interpreter != "":
		return Usage("--interpreter needs --script")
	case f.script == "" && len(s.GetCommand()) == 0:
		return Usage("a command is missing: put it behind --, as in `hodei run -- echo hello`, or give --script")
	case f.script == "-" && f.stdin:
		return Usage("standard input is the script or the job's input, not both")
	}
	if f.script != "" {
		content, err := readInput(a, f.script, "--script")
		if err != nil {
			return err
		}
		s.Script = &schedulerv1.Script{Interpreter: f.interpreter, Content: string(content)}
	}
	if f.stdin {
		var err error
		if s.Stdin, err = readInput(a, "-", "--stdin"); err != nil {
			return err
		}
	}
	return nil
}

// readInput reads a file, or standard input for "-", as far as a job may hold it.
func readInput(a *app, name, flag string) ([]byte, error) {
	r := a.in
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, Usage("%s: %v", flag, err)
		}
		defer file.Close()
		r = file
	}
	content, err := io.ReadAll(io.LimitReader(r, job.MaxSpecBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", flag, err)
	}
	if len(content) > job.MaxSpecBytes {
		return nil, fmt.Errorf("%s is larger than the %d KiB that a job may have: put large input where the job can fetch it", flag, job.MaxSpecBytes>>10)
	}
	if content == nil {
		content = []byte{} // present, and empty
	}
	return content, nil
}

func (f *specFlags) maps(s *schedulerv1.JobSpec) error {
	s.Env = map[string]string{}
	for _, name := range f.envFiles {
		if err := f.envFile(name, s.Env); err != nil {
			return err
		}
	}
	env, err := pairs("--env", f.env)
	if err != nil {
		return err
	}
	maps.Copy(s.Env, env)
	if s.Labels, err = pairs("--label", f.labels); err != nil {
		return err
	}
	if s.Annotations, err = pairs("--annotation", f.annotations); err != nil {
		return err
	}
	required, err := pairs("--require-label", f.required)
	if f.provider != "" || f.preferred != "" || len(required) > 0 {
		s.Placement = &schedulerv1.Placement{Provider: f.provider, PreferredProvider: f.preferred, RequiredLabels: required}
	}
	return err
}

func (f *specFlags) envFile(name string, env map[string]string) error {
	file, err := os.Open(name)
	if err != nil {
		return Usage("--env-file: %v", err)
	}
	defer file.Close()
	return readEnv(file, name, env)
}

func (f *specFlags) limits(cmd *cobra.Command, s *schedulerv1.JobSpec) error {
	for flag, text := range map[string]string{
		"--timeout": f.timeout, "--queue-timeout": f.queueTimeout, "--backoff-initial": f.backoffInitial, "--backoff-max": f.backoffMax,
	} {
		if err := checkDuration(flag, text); err != nil {
			return err
		}
	}
	if f.cpu != "" || f.memory != "" {
		s.Resources = &schedulerv1.Resources{}
		if err := reserve(f.cpu, f.memory, &s.Resources.CpuMillis, &s.Resources.MemoryBytes); err != nil {
			return err
		}
	}
	return f.retry(cmd, s)
}

// retry is the policy; the spec has none where no flag of it was given.
func (f *specFlags) retry(cmd *cobra.Command, s *schedulerv1.JobSpec) error {
	given := cmd.Flags().Changed
	if given("max-attempts") && f.maxAttempts < 1 {
		return Usage("--max-attempts %d: at least 1", f.maxAttempts)
	}
	policy := &schedulerv1.Retry{MaxAttempts: f.maxAttempts}
	if given("infrastructure-attempts") {
		policy.InfrastructureAttempts = &f.infrastructureAttempts
	}
	for _, category := range split(f.retryOn) {
		policy.On = append(policy.On, strings.ToUpper(strings.ReplaceAll(category, "-", "_")))
	}
	if given("retry-on") && len(policy.On) == 0 {
		return Usage("--retry-on is empty: name categories such as EXIT_CODE; with --max-attempts 1 and --infrastructure-attempts 0 nothing is retried")
	}
	backoff := &schedulerv1.Backoff{Initial: f.backoffInitial, Max: f.backoffMax}
	if given("backoff-factor") {
		backoff.Factor = &f.backoffFactor
	}
	if given("backoff-jitter") {
		backoff.Jitter = &f.backoffJitter
	}
	if proto.Size(backoff) > 0 {
		policy.Backoff = backoff
	}
	if proto.Size(policy) > 0 {
		s.Retry = policy
	}
	return nil
}

// checkDuration refuses what is no Go duration; whether it may be that long is the
// server's to say.
func checkDuration(flag, text string) error {
	if text == "" {
		return nil
	}
	if _, err := time.ParseDuration(text); err != nil {
		return Usage("%s %q: write it like 30s, 5m or 1h30m", flag, text)
	}
	return nil
}

// reserve reads --cpu and --memory; the targets are not touched by empty ones.
func reserve(cpu, mem string, millis, bytes *int64) error {
	var err error
	if cpu != "" {
		if *millis, err = cores(cpu); err != nil {
			return Usage("--cpu %v", err)
		}
	}
	if mem != "" {
		if *bytes, err = memory(mem); err != nil {
			return Usage("--memory %v", err)
		}
	}
	return nil
}
