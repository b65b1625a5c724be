package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/core"
	"hodei.dev/services/scheduler/internal/app"
)

// summary is the Job message without spec and attempts, as lists have it.
func summary(v app.View, now time.Time) *schedulerv1.Job {
	reason, advice := core.Explain(v.Job, now)
	out := &schedulerv1.Job{
		Id: v.ID, Name: v.Spec.Name, Namespace: v.Spec.Namespace, State: string(v.State), Attempt: int32(v.Attempt),
		WorkerId: v.WorkerID, ProviderId: v.ProviderID, Labels: v.Spec.Labels, CorrelationId: v.CorrelationID,
		Reason: reason, Advice: advice, CancelRequested: v.Cancel != nil, QueuedBy: v.QueuedBy, RetryOf: v.RetryOf,
		CreatedAt: stamp(v.CreatedAt), StartedAt: stamp(v.StartedAt), FinishedAt: stamp(v.FinishedAt), QueuedAt: stamp(v.QueuedAt),
		Version: int64(v.Version), Priority: int32(v.Spec.Priority), Deferred: v.Deferred,
	}
	if v.State == job.StatePending {
		out.NotBefore = stamp(v.NotBefore)
	}
	if v.Attempt > 0 {
		out.LogRef = job.LogRef(v.ID, v.Attempt)
	}
	// A job that is queued again, or runs again, still shows how its last attempt ended.
	if r := v.Result; r != nil {
		out.ExitCode, out.Signal, out.Failure = exitCode(r), int32(r.Signal), failure(r.Failure, core.Advice(v.Job))
	}
	return out
}

// message is the whole Job message.
func message(v app.View, now time.Time) *schedulerv1.Job {
	out := summary(v, now)
	out.Spec, out.AttemptsEnded, out.AttemptsLost = spec(v), int32(v.Spent.Own), int32(v.Spent.Infrastructure)
	for _, a := range v.Attempts {
		out.Attempts = append(out.Attempts, attempt(v.ID, a))
	}
	return out
}

func attempt(jobID string, a job.Attempt) *schedulerv1.Attempt {
	out := &schedulerv1.Attempt{
		Number: int32(a.Number), WorkerId: a.WorkerID, ProviderId: a.ProviderID, LogRef: job.LogRef(jobID, a.Number),
		AssignedAt: stamp(a.AssignedAt), StartedAt: stamp(a.StartedAt), FinishedAt: stamp(a.FinishedAt),
	}
	if r := a.Result; r != nil {
		out.ExitCode, out.Signal = exitCode(r), int32(r.Signal)
		out.LogBytes, out.LogDropped = r.LogBytes, r.LogDropped
		out.Usage = &schedulerv1.Usage{CpuUser: r.Usage.CPUUser.String(), CpuSystem: r.Usage.CPUSystem.String(), MaxRssBytes: r.Usage.MaxRSSBytes}
		if r.Failure != nil {
			out.Failure = failure(r.Failure, r.Failure.Advice)
		}
	}
	return out
}

// spec is the job's spec with its defaults, in the form that it could be queued again.
func spec(v app.View) *schedulerv1.JobSpec {
	s := v.Spec
	out := &schedulerv1.JobSpec{
		Id: v.ID, Name: s.Name, Namespace: s.Namespace, Command: s.Command, Env: s.Env, Cwd: s.Cwd, Stdin: s.Stdin,
		Resources: &schedulerv1.Resources{CpuMillis: s.Resources.CPUMillis, MemoryBytes: s.Resources.MemoryBytes},
		Labels:    s.Labels, Annotations: s.Annotations, Priority: int32(s.Priority),
		Timeout: s.Timeout.String(), QueueTimeout: s.QueueTimeout.String(),
		Retry:       retryMessage(s.Retry),
		Placement:   &schedulerv1.Placement{Provider: s.Placement.Provider, PreferredProvider: s.Placement.PreferredProvider, RequiredLabels: s.Placement.RequiredLabels},
		Description: s.Description, Tags: s.Tags,
		IdempotencyKey: v.IdempotencyKey, CorrelationId: v.CorrelationID,
	}
	if s.Script != nil {
		out.Script = &schedulerv1.Script{Interpreter: s.Script.Interpreter, Content: s.Script.Content}
	}
	return out
}

func retryMessage(r job.Retry) *schedulerv1.Retry {
	r = r.Explicit()
	infrastructure := int32(r.InfrastructureAttempts)
	out := &schedulerv1.Retry{
		MaxAttempts: int32(r.MaxAttempts), InfrastructureAttempts: &infrastructure,
		Backoff: &schedulerv1.Backoff{Initial: r.Backoff.Initial.String(), Factor: &r.Backoff.Factor, Max: r.Backoff.Max.String(), Jitter: &r.Backoff.Jitter},
	}
	for _, c := range r.On {
		out.On = append(out.On, string(c))
	}
	return out
}

func failure(f *job.Failure, advice string) *schedulerv1.Failure {
	if f == nil {
		return nil
	}
	return &schedulerv1.Failure{Category: string(f.Category), Code: f.Code, Message: f.Message, Advice: advice}
}

func exitCode(r *job.Result) *int32 {
	if r.ExitCode == nil {
		return nil
	}
	code := int32(*r.ExitCode)
	return &code
}

func eventMessage(e event.Event) *schedulerv1.Event {
	return &schedulerv1.Event{
		Id: e.ID, Type: e.Type, Version: int32(e.Version), Position: e.Position, StreamVersion: int64(e.StreamVersion),
		Aggregate: e.Stream.String(), Namespace: e.Namespace, Source: e.Source, CorrelationId: e.CorrelationID,
		CausationId: e.CausationID, Actor: e.Actor, Time: stamp(e.Time), Data: e.Data,
	}
}

// stamp leaves out a time that is not known.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
