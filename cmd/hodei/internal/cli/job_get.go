package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func (a *app) jobGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "get JOB",
		Short: "say all about a job: why it waits or failed, and what to do next",
		Long: "Get prints a job as it is now: its state and why, what to do next, its attempts and its spec.\n" +
			"Limits on cpu and memory are `enforced` or `reserved only`, as its provider can.",
		Example:           "  hodei job get 0198c2e1\n  hodei job get 0198c2e1 -o json | jq .failure",
		Args:              args(1, 1, "JOB"),
		ValidArgsFunction: a.completeJobs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			resp, err := r.jobs.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: args[0]})
			if err != nil {
				return err
			}
			if a.json() {
				return render.Object(a.out, resp.GetJob())
			}
			return a.describe(resp.GetJob(), providerOf(ctx, r, resp.GetJob()))
		},
	}
}

// providerOf is the job's provider, nil where it has none or nobody can say.
func providerOf(ctx context.Context, r *remote, j *schedulerv1.Job) *provisionerv1.Provider {
	if j.GetProviderId() == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	resp, err := r.providers.GetProvider(ctx, &provisionerv1.GetProviderRequest{Provider: j.GetProviderId()})
	if err != nil {
		return nil // the job is what was asked for
	}
	return resp.GetProvider()
}

// describe prints a job for people.
func (a *app) describe(j *schedulerv1.Job, p *provisionerv1.Provider) error {
	now := a.now()
	var s render.Sheet
	s.Add("id", "%s", j.GetId())
	s.Add("name", "%s", j.GetName())
	s.Add("namespace", "%s", j.GetNamespace())
	state := j.GetState()
	if j.GetCancelRequested() && !terminal(state) {
		state += ", cancel requested"
	}
	s.Add("state", "%s", state)
	s.Add("why", "%s", j.GetReason())
	for _, d := range j.GetDeferred() {
		if !strings.Contains(j.GetReason(), d) {
			s.Add("", "%s", d)
		}
	}
	describeEnd(&s, j)
	s.Add("attempt", "%s", attemptOf(j))
	if j.GetAttemptsEnded()+j.GetAttemptsLost() > 0 {
		s.Add("so far", "%d ended by the command, %d lost by the platform", j.GetAttemptsEnded(), j.GetAttemptsLost())
	}
	if p != nil {
		s.Add("provider", "%s (%s)", p.GetName(), j.GetProviderId())
	} else {
		s.Add("provider", "%s", j.GetProviderId())
	}
	s.Add("worker", "%s", j.GetWorkerId())
	s.Add("queued by", "%s", j.GetQueuedBy())
	s.Add("created", "%s", since(now, j.GetCreatedAt()))
	if j.GetQueuedAt() != nil && !j.GetQueuedAt().AsTime().Equal(j.GetCreatedAt().AsTime()) {
		s.Add("queued", "%s", since(now, j.GetQueuedAt()))
	}
	if at := j.GetNotBefore(); at != nil {
		wait := "now"
		if left := at.AsTime().Sub(now); left > 0 {
			wait = "in " + render.Duration(left)
		}
		s.Add("not before", "%s (%s)", render.Time(at), wait)
	}
	s.Add("started", "%s", since(now, j.GetStartedAt()))
	s.Add("finished", "%s", since(now, j.GetFinishedAt()))
	s.Add("ran", "%s", render.Between(j.GetStartedAt(), j.GetFinishedAt()))
	s.Add("retry of", "%s", j.GetRetryOf())
	s.Add("correlation", "%s", j.GetCorrelationId())
	s.Add("log", "%s", j.GetLogRef())
	s.Add("labels", "%s", render.Pairs(j.GetLabels()))
	describeSpec(&s, j.GetSpec(), p)
	if err := s.Print(a.out); err != nil {
		return err
	}
	return a.describeAttempts(j)
}

// describeEnd says how the job failed and what to do next.
func describeEnd(s *render.Sheet, j *schedulerv1.Job) {
	f := j.GetFailure()
	if f != nil {
		s.Add("failure", "%s (%s): %s", f.GetCategory(), f.GetCode(), f.GetMessage())
	}
	advice := j.GetAdvice()
	if advice == "" {
		advice = f.GetAdvice()
	}
	s.Add("what to do", "%s", advice)
	if j.ExitCode != nil {
		s.Add("exit code", "%d", j.GetExitCode())
	}
	if j.GetSignal() > 0 {
		s.Add("signal", "%d", j.GetSignal())
	}
}

func attemptOf(j *schedulerv1.Job) string {
	if j.GetAttempt() == 0 {
		return "none yet"
	}
	return fmt.Sprint(j.GetAttempt())
}

func describeSpec(s *render.Sheet, spec *schedulerv1.JobSpec, p *provisionerv1.Provider) {
	if spec == nil {
		return
	}
	s.Add("command", "%s", render.Command(spec.GetCommand()))
	if spec.GetScript() != nil {
		s.Add("script", "%d bytes for %s", len(spec.GetScript().GetContent()), spec.GetScript().GetInterpreter())
	}
	s.Add("cwd", "%s", spec.GetCwd())
	s.Add("env", "%s", render.Pairs(spec.GetEnv()))
	if spec.Stdin != nil {
		s.Add("stdin", "%d bytes", len(spec.GetStdin()))
	}
	if v := spec.GetResources().GetCpuMillis(); v > 0 {
		s.Add("cpu", "%s%s", render.Cores(v), limited(p.GetCpuLimits()))
	}
	if v := spec.GetResources().GetMemoryBytes(); v > 0 {
		s.Add("memory", "%s%s", render.Bytes(v), limited(p.GetMemoryLimits()))
	}
	if v := spec.GetPriority(); v != 0 {
		s.Add("priority", "%d", v)
	}
	s.Add("timeout", "%s", spec.GetTimeout())
	s.Add("queue timeout", "%s", spec.GetQueueTimeout())
	describeRetry(s, spec.GetRetry())
	s.Add("wants provider", "%s", spec.GetPlacement().GetProvider())
	s.Add("prefers provider", "%s", spec.GetPlacement().GetPreferredProvider())
	s.Add("wants labels", "%s", render.Pairs(spec.GetPlacement().GetRequiredLabels()))
	s.Add("description", "%s", spec.GetDescription())
	s.Add("tags", "%s", strings.Join(spec.GetTags(), ", "))
	s.Add("annotations", "%s", render.Pairs(spec.GetAnnotations()))
	s.Add("idempotency key", "%s", spec.GetIdempotencyKey())
}

// describeRetry prints a retry policy.
func describeRetry(s *render.Sheet, retry *schedulerv1.Retry) {
	if retry == nil {
		return
	}
	s.Add("max attempts", "%d, and %d that the platform may lose", retry.GetMaxAttempts(), retry.GetInfrastructureAttempts())
	on := strings.Join(retry.GetOn(), ", ")
	if on == "" {
		on = "nothing"
	}
	s.Add("retry on", "%s", on)
	if b := retry.GetBackoff(); b != nil && len(retry.GetOn()) > 0 {
		s.Add("backoff", "%s, times %v each time up to %s; chance takes off up to %v of it", b.GetInitial(), b.GetFactor(), b.GetMax(), b.GetJitter())
	}
}

// limited is what a provider makes of a reservation, in brackets.
func limited(how string) string {
	if how == "" {
		return ""
	}
	return " (" + how + ")"
}

// describeAttempts prints a table where there was more than one attempt, or one with usage.
func (a *app) describeAttempts(j *schedulerv1.Job) error {
	if len(j.GetAttempts()) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(a.out); err != nil {
		return err
	}
	t := render.NewTable(a.out, "ATTEMPT", "WORKER", "STARTED", "RAN", "EXIT", "CPU", "MEMORY", "LOG", "FAILURE")
	for _, at := range j.GetAttempts() {
		cpu := ""
		if u := at.GetUsage(); u != nil {
			cpu = u.GetCpuUser() + "+" + u.GetCpuSystem()
		}
		mem := ""
		if v := at.GetUsage().GetMaxRssBytes(); v > 0 {
			mem = render.Bytes(v)
		}
		log := render.Bytes(at.GetLogBytes())
		if d := at.GetLogDropped(); d > 0 {
			log += ", " + render.Bytes(d) + " cut"
		}
		failure := at.GetFailure().GetCategory()
		if m := at.GetFailure().GetMessage(); m != "" {
			failure += ": " + m
		}
		t.Add(
			fmt.Sprint(at.GetNumber()), at.GetWorkerId(), render.Time(at.GetStartedAt()), render.Between(at.GetStartedAt(), at.GetFinishedAt()),
			exitOf(&schedulerv1.Job{ExitCode: at.ExitCode, Signal: at.GetSignal()}), cpu, mem, log, failure,
		)
	}
	return t.Flush()
}
