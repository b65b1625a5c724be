package rpc

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/platform/rpc"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/internal/app"
)

// maxKeyBytes bounds an idempotency key.
const maxKeyBytes = 255

// request turns an API spec into a request without its Meta. The error names
// every wrong field at once: those that the domain refuses as well.
func request(in *schedulerv1.JobSpec) (app.Request, error) {
	if in == nil {
		in = &schedulerv1.JobSpec{}
	}
	var wrong fault.Fields
	r := app.Request{ID: strings.ToLower(in.GetId()), IdempotencyKey: in.GetIdempotencyKey()}
	if r.ID != "" && !app.WholeID(r.ID) {
		wrong.Add("id", "%q: give a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057, or leave it out to have one made", clip(in.GetId()))
	}
	checkKey(&wrong, r.IdempotencyKey)
	if id := in.GetCorrelationId(); id != "" {
		if err := rpc.ValidateCorrelationID(id); err != nil {
			wrong.Add("correlation_id", "%s", err)
		}
	}
	r.Spec = job.Spec{
		Name: in.GetName(), Namespace: in.GetNamespace(), Command: in.GetCommand(), Env: in.GetEnv(), Cwd: in.GetCwd(), Stdin: in.GetStdin(),
		Resources: job.Resources{CPUMillis: in.GetResources().GetCpuMillis(), MemoryBytes: in.GetResources().GetMemoryBytes()},
		Labels:    in.GetLabels(), Annotations: in.GetAnnotations(), Priority: int(in.GetPriority()),
		Timeout:      duration(&wrong, "timeout", in.GetTimeout()),
		QueueTimeout: duration(&wrong, "queue_timeout", in.GetQueueTimeout()),
		Retry:        retry(&wrong, in.GetRetry()),
		Placement:    placement(in.GetPlacement()),
		Description:  in.GetDescription(), Tags: in.GetTags(),
	}
	if in.GetScript() != nil {
		r.Spec.Script = &job.Script{Interpreter: in.GetScript().GetInterpreter(), Content: in.GetScript().GetContent()}
	}
	checkUnknown(&wrong, "", in.ProtoReflect())
	return r, withDomain(wrong, r.Spec)
}

func placement(in *schedulerv1.Placement) job.Placement {
	return job.Placement{Provider: in.GetProvider(), PreferredProvider: in.GetPreferredProvider(), RequiredLabels: in.GetRequiredLabels()}
}

// retry reads a policy. Where the API tells an explicit zero from a field that was left
// out and the domain does not, what was left out is filled in here.
func retry(wrong *fault.Fields, in *schedulerv1.Retry) job.Retry {
	r := job.Retry{MaxAttempts: int(in.GetMaxAttempts()), InfrastructureAttempts: job.DefaultInfrastructureAttempts}
	if in == nil {
		return r
	}
	if in.InfrastructureAttempts != nil {
		r.InfrastructureAttempts = int(in.GetInfrastructureAttempts())
	}
	for _, c := range in.GetOn() {
		r.On = append(r.On, job.Category(c))
	}
	if b := in.GetBackoff(); b != nil {
		r.Backoff = job.Backoff{
			Initial: duration(wrong, "retry.backoff.initial", b.GetInitial()), Factor: b.GetFactor(),
			Max: duration(wrong, "retry.backoff.max", b.GetMax()), Jitter: b.GetJitter(),
		}
		if r.Backoff.Initial == 0 {
			r.Backoff.Initial = unit.Duration(job.DefaultInitialBackoff)
		}
		if b.Factor != nil && r.Backoff.Factor == 0 {
			wrong.Add("retry.backoff.factor", "0: from 1 to %v", job.MaxBackoffFactor)
		}
		if b.Jitter == nil {
			r.Backoff.Jitter = job.DefaultJitter
		}
	}
	return r
}

// withDomain adds what the domain finds wrong with the spec. Where the API's part
// is right, the use case hears it from the domain by itself.
func withDomain(wrong fault.Fields, spec job.Spec) error {
	if len(wrong) == 0 {
		return nil
	}
	if refused, ok := errors.AsType[*fault.Error](spec.WithDefaults().Validate()); ok {
		wrong = append(wrong, refused.Fields...)
	}
	return wrong.Err("the job")
}

func checkKey(wrong *fault.Fields, key string) {
	switch {
	case len(key) > maxKeyBytes:
		wrong.Add("idempotency_key", "%d bytes; at most %d", len(key), maxKeyBytes)
	case !utf8.ValidString(key):
		wrong.Add("idempotency_key", "not valid UTF-8")
	case strings.ContainsRune(key, 0):
		wrong.Add("idempotency_key", "contains a NUL byte")
	}
}

// duration reads a duration; empty is 0, which stands for the default. An
// explicit zero is refused here, because the domain would take it for the default.
func duration(wrong *fault.Fields, name, text string) unit.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		wrong.Add(name, "%q is not a duration: write it like 30s, 5m or 1h30m", clip(text))
	case d <= 0 || d > job.MaxTimeout:
		wrong.Add(name, "%s: more than 0 and at most %s", clip(text), job.MaxTimeout)
	default:
		return unit.Duration(d)
	}
	return 0
}

// checkUnknown refuses fields of a newer API: what is accepted is honoured, so
// what is not understood is not accepted.
func checkUnknown(wrong *fault.Fields, path string, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		name := strings.TrimSuffix(path, ".")
		if name == "" {
			name = "spec"
		}
		wrong.Add(name, "has a field that this server does not know: use a client of the server's version")
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() != nil && !f.IsMap() && !f.IsList() {
			checkUnknown(wrong, path+string(f.Name())+".", v.Message())
		}
		return true
	})
}

func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
