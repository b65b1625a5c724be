package cli

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	auditv1 "hodei.dev/proto/hodei/audit/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// aWorld has a job that failed, a worker and four events.
func aWorld() *world {
	w := newWorld()
	code := int32(3)
	at := timestamppb.New(time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC))
	w.jobs = []*schedulerv1.Job{{
		Id: "0198c2e1-7b60-7d3f-b5a0-0f6f1d3c2b1a", Name: "sh", Namespace: "default", State: "FAILED", Attempt: 1, ExitCode: &code,
		Failure:  &schedulerv1.Failure{Category: "EXIT_CODE", Code: "JOB_EXIT_CODE", Message: "exit code 3", Advice: "read its output"},
		WorkerId: "w-1", ProviderId: "p-1", CreatedAt: ago(time.Hour), StartedAt: ago(time.Minute), FinishedAt: ago(50 * time.Second),
		Labels: map[string]string{"team": "web"}, CorrelationId: "c-1", Reason: "exit code 3", QueuedBy: "user/ann", Version: 6,
		Spec: &schedulerv1.JobSpec{
			Command: []string{"sh", "-c", "exit 3"}, Resources: &schedulerv1.Resources{CpuMillis: 500, MemoryBytes: 256 << 20}, Timeout: "1h0m0s",
			Env: map[string]string{"A": "b\x1b[2J"}, Description: "nightly\x1b[2J", Tags: []string{"night run", "b"},
			Placement: &schedulerv1.Placement{PreferredProvider: "local", RequiredLabels: map[string]string{"zone": "eu"}},
		},
		Attempts: []*schedulerv1.Attempt{{Number: 1, WorkerId: "w-1", StartedAt: at, FinishedAt: at, ExitCode: &code, Usage: &schedulerv1.Usage{CpuUser: "1ms", CpuSystem: "2ms", MaxRssBytes: 2 << 20}}},
	}}
	w.workers = []*registryv1.Worker{{Id: "w-1", State: "BUSY", ProviderName: "local", JobId: "j-1", JobsPerWorker: 5, JobsDone: 2, CreatedAt: ago(time.Hour), LastHeartbeatAt: ago(2 * time.Second), Hostname: "h"}}
	event := func(n int, kind, data string) *schedulerv1.Event {
		return &schedulerv1.Event{
			Id: "e-1", Type: kind, Version: 1, Position: int64(n), Aggregate: "job/0198c2e1", Actor: "user/ann", CorrelationId: "c-1",
			Time: timestamppb.New(at.AsTime().Add(time.Duration(n) * 5 * time.Millisecond)), Data: []byte(data),
		}
	}
	w.events = []*schedulerv1.Event{
		event(1, "JobCreated", `{"spec":{"name":"sh"}}`),
		event(2, "JobQueued", `{"name":"sh","priority":0}`),
		event(3, "JobAssigned", `{"from":"PENDING","attempt":1,"worker_id":"w-1","reason":"idle"}`),
		event(4, "JobStatusChanged", `{"from":"RUNNING","to":"FAILED","attempt":1,"reason":"exit code 3","result":{"exit_code":3,"failure":{"category":"EXIT_CODE"}}}`),
	}
	return w
}

const aJob = "0198c2e1-7b60-7d3f-b5a0-0f6f1d3c2b1a"

func TestCommandsInText(t *testing.T) {
	for name, tc := range map[string]struct {
		args   []string
		code   int
		stdout string // a regular expression
		stderr string
	}{
		"job list":        {[]string{"job", "list"}, 0, `(?s)^ID +STATE +EXIT +NAME +NAMESPACE +AGE +RAN +ATTEMPT\n` + aJob + ` +FAILED +3 +sh +default +1h +10s +1\n$`, `^$`},
		"job get":         {[]string{"job", "get", "0198"}, 0, `(?s)id +` + aJob + `\n.*state +FAILED\nwhy +exit code 3\nfailure +EXIT_CODE \(JOB_EXIT_CODE\): exit code 3\nwhat to do +read its output\nexit code +3\n.*provider +local \(p-1\)\n.*command +sh -c 'exit 3'\nenv +A=b\\x1b\[2J\ncpu +500m \(enforced\)\nmemory +256Mi \(reserved only\)\n.*prefers provider +local\nwants labels +zone=eu\ndescription +nightly\\x1b\[2J\ntags +night run, b\n.*ATTEMPT +WORKER.*1ms\+2ms +2Mi`, `^$`},
		"job get, none":   {[]string{"job", "get", "ffff"}, 4, `^$`, `^hodei: there is no job ffff\nwhat to do: list the jobs that there are: .hodei job list.\n$`},
		"job watch":       {[]string{"job", "watch", "0198"}, 0, `^\d\d:\d\d:\d\dZ  FAILED  attempt 1  exit code 3\n$`, `^$`},
		"job wait":        {[]string{"job", "wait", "0198"}, 3, `^` + aJob + ` FAILED\n$`, `hodei: job ` + aJob + ` FAILED: exit code 3\nwhat to do: read its output\n`},
		"job history":     {[]string{"job", "history", "0198"}, 0, `(?s)^TIME +AFTER +EVENT +ACTOR +DETAIL\n2026-05-01 12:00:00.005Z +\+0s +JobCreated.*\+15ms +JobStatusChanged +user/ann +RUNNING -> FAILED, attempt 1, exit 3, EXIT_CODE: exit code 3\n$`, `^$`},
		"job cancel":      {[]string{"job", "cancel", "0198", "--reason", "why"}, 0, `^` + aJob + ` FAILED\n$`, `^$`},
		"job retry":       {[]string{"job", "retry", "0198"}, 0, `^new-one\n$`, `^$`},
		"worker list":     {[]string{"worker", "list"}, 0, `(?s)^ID.*w-1 +BUSY +local +j-1 +2/5 +1h +2s +h\n$`, `^$`},
		"worker get":      {[]string{"worker", "get", "w"}, 0, `(?s)state +BUSY\n.*job +j-1 \(attempt 0\)\njobs done +2/5\nconnected +no\n`, `^$`},
		"worker watch":    {[]string{"worker", "watch", "w-1"}, 0, `(?s)READY  because\n.*BUSY  because\n.*TERMINATED  because\n$`, `^$`},
		"worker drain":    {[]string{"worker", "drain", "w-1"}, 0, `^w-1 DRAINING\n$`, `^$`},
		"worker undrain":  {[]string{"worker", "undrain", "w-1"}, 0, `^w-1 BUSY\n$`, `^$`},
		"worker undo":     {[]string{"worker", "drain", "--undo", "w-1"}, 0, `^w-1 BUSY\n$`, `^$`},
		"worker kill":     {[]string{"worker", "terminate", "w-1"}, 0, `^w-1 TERMINATING\n$`, `^$`},
		"worker token":    {[]string{"worker", "token", "--provider", "lab"}, 0, `^worker +w-9\ntoken +t-secret\naddress +127.0.0.1:7434\nexpires +2026-05-01 12:00:00Z\n$`, `hodei-agent --server 127.0.0.1:7434 --worker w-9 --token-file FILE`},
		"provider list":   {[]string{"provider", "list"}, 0, `(?s)local +process +ENABLED +HEALTHY +CIRCUIT_OPEN +2/4 +1 +1 +500m/2 \(enforced\) +256Mi/8Gi \(reserved only\) +p-1\n$`, `^$`},
		"provider get":    {[]string{"provider", "get", "local"}, 0, `(?s)alert +CIRCUIT_OPEN since .*: no disk\ncircuit +HALF_OPEN since .*: no disk\nprobe +worker w-7\nworkers +2 of 4: 1 idle, 1 busy\n.*jobs per worker +unlimited\n.*labels +gpu= zone=eu\n`, `^$`},
		"provider remove": {[]string{"provider", "remove", "local"}, 0, `^local REMOVED\n$`, `^$`},
		"provider wrong":  {[]string{"provider", "register", "x", "--kind", "moon"}, 1, `^$`, `^hodei: the provider is not valid\n  kind: "moon": process or external\nwhat to do: correct the named fields and send it again\n$`},
		"audit search":    {[]string{"audit", "search"}, 0, `(?s)^TIME +POSITION +EVENT.*JobCreated.*JobStatusChanged.*EXIT_CODE: exit code 3\n$`, `^$`},
		"audit limit":     {[]string{"audit", "search", "--limit", "3"}, 0, `(?s)^(\N+\n){4}$`, `there are more; --limit 0 prints all`},
		"audit counts":    {[]string{"audit", "counts"}, 0, `^EVENT +COUNT\nJobCreated +2\nJobQueued +2\ntotal +4\n$`, `^$`},
		"audit trace":     {[]string{"audit", "trace", "0198"}, 0, `(?s)^correlation id c-1, 4 events from 2026-05-01 12:00:00.005Z\n\nAFTER +EVENT.*\+0s +JobCreated.*\+5ms +  JobQueued.*\+10ms +    JobAssigned.*\+15ms +      JobStatusChanged`, `^$`},
		"dlq list":        {[]string{"dlq", "list"}, 0, `(?s)^ID.*3f2a +DEAD +audit +JobCreated +job/0198c2e1 +5 +1m0s +cannot decode\\x1b\[31m\n$`, `3 in all: audit=3`},
		"dlq group":       {[]string{"dlq", "list", "--group"}, 0, `(?s)^FINGERPRINT.*9c0ffee12345 +1 +audit +JobCreated`, `3 in all`},
		"dlq replay":      {[]string{"dlq", "replay", "3f2a"}, 0, `^REPLAYED +3f2a +JobCreated +job/0198c2e1 +why +\(1/2\)\n$`, `^$`},
		"dlq replay all":  {[]string{"dlq", "replay", "--all", "--rate", "5"}, 1, `FAILED_AGAIN +3f2a`, `1 of 2`},
		"dlq discard":     {[]string{"dlq", "discard", "3f2a", "--reason", "old"}, 0, `^DISCARDED +3f2a`, `^$`},
		"dlq no filter":   {[]string{"dlq", "replay"}, 2, `^$`, `--all`},
		"dlq show":        {[]string{"dlq", "show", "3f2a"}, 0, `(?s)error +cannot decode\n.*header ce-id +e-1\n\{\n  "a": 1\n\}\n$`, `^$`},
		"status":          {[]string{"status"}, 0, `(?s)^SERVICE.*audit +ready +active +0 +0 +0 +1h .*\n\njobs +3 PENDING, 1 RUNNING\nworkers +1 BUSY\ndead letters +audit=3; see .hodei dlq list.\n$`, `^$`},
		"version":         {[]string{"version"}, 0, `^hodei \S+\n$`, `^$`},
		"completion":      {[]string{"completion", "bash"}, 0, `hodei`, `^$`},
		"ids completed":   {[]string{"__complete", "job", "get", "01"}, 0, `(?m)^` + aJob + `\tsh FAILED$`, `.*`},
		"alone":           {nil, 0, `(?s)Available Commands:.*audit`, `^$`},
	} {
		t.Run(name, func(t *testing.T) {
			got := serve(t, aWorld()).run(tc.args...)
			// Go's regular expressions have no \N.
			stdout := strings.ReplaceAll(tc.stdout, `\N`, `[^\n]`)
			if got.code != tc.code || !regexp.MustCompile(stdout).MatchString(got.stdout) || !regexp.MustCompile(tc.stderr).MatchString(got.stderr) {
				t.Errorf("code %d, want %d\nstdout:\n%s\nwant %s\nstderr:\n%s\nwant %s", got.code, tc.code, got.stdout, stdout, got.stderr, tc.stderr)
			}
		})
	}
}

// TestJobGetTellsOfAttempts: what is retried, how each attempt ended, and when the next one may begin.
func TestJobGetTellsOfAttempts(t *testing.T) {
	w := aWorld()
	j, at, three := w.jobs[0], time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC), int32(3)
	j.State, j.NotBefore, j.AttemptsEnded, j.AttemptsLost = "PENDING", timestamppb.New(time.Now().Add(time.Hour+time.Second)), 1, 1
	j.Spec.Retry = &schedulerv1.Retry{
		MaxAttempts: 3, InfrastructureAttempts: &three, On: []string{"EXIT_CODE", "WORKER_LOST"},
		Backoff: &schedulerv1.Backoff{Initial: "1s", Factor: new(2.0), Max: "1m0s", Jitter: new(0.5)},
	}
	j.Attempts = append(j.Attempts, &schedulerv1.Attempt{
		Number: 2, WorkerId: "w-2", StartedAt: timestamppb.New(at), FinishedAt: timestamppb.New(at),
		Failure: &schedulerv1.Failure{Category: "WORKER_LOST", Message: "worker w-2 is gone"},
	})
	got := serve(t, w).run("job", "get", "0198")
	want := `(?s)so far +1 ended by the command, 1 lost by the platform\n.*not before +\S+ \S+ \(in (1h|59m).*\)\n` +
		`.*max attempts +3, and 3 that the platform may lose\nretry on +EXIT_CODE, WORKER_LOST\nbackoff +1s, times 2 each time up to 1m0s; chance takes off up to 0.5 of it\n` +
		`.*\n1 +w-1 .* 3 .*\n2 +w-2 .*WORKER_LOST: worker w-2 is gone\n`
	if got.code != 0 || !regexp.MustCompile(want).MatchString(got.stdout) {
		t.Errorf("code %d\n%s\nwant %s", got.code, got.stdout, want)
	}
}

// Every command's JSON is an object, an array or an object a line, with the API's names.
func TestCommandsInJSON(t *testing.T) {
	for command, tc := range map[string]struct {
		code int
		key  string // what its first object has
	}{
		"job list": {0, "id"}, "job get 0198": {0, "retry_of"}, "job watch 0198": {0, "state"}, "job wait 0198": {3, "state"}, "job history 0198": {0, "stream_version"},
		"job cancel 0198": {0, "state"}, "job retry 0198": {0, "id"}, "worker list": {0, "last_heartbeat_at"}, "worker get w": {0, "jobs_per_worker"}, "worker watch w-1": {0, "state"},
		"worker drain w": {0, "state"}, "worker terminate w": {0, "state"}, "worker token --provider p": {0, "agent_address"}, "provider list": {0, "memory_limits"},
		"provider get p": {0, "spec"}, "provider register p --kind process": {0, "spec"}, "provider remove p": {0, "state"}, "audit search": {0, "data"}, "audit counts": {0, "counts"}, "audit trace 0198": {0, "nodes"},
		"dlq list": {0, "deliveries"}, "dlq show 3f2a": {0, "raw"}, "status": {0, "dead_letters"}, "version": {0, "built_with"},
	} {
		t.Run(command, func(t *testing.T) {
			got := serve(t, aWorld()).run(append(strings.Fields(command), "-o", "json")...)
			if got.code != tc.code {
				t.Fatalf("%+v", got)
			}
			d := json.NewDecoder(strings.NewReader(got.stdout))
			var first json.RawMessage
			if err := d.Decode(&first); err != nil {
				t.Fatalf("%v: %s", err, got.stdout)
			}
			var list []map[string]any
			var object map[string]any
			if json.Unmarshal(first, &list) == nil {
				object = list[0]
			} else if err := json.Unmarshal(first, &object); err != nil {
				t.Fatal(err)
			}
			if _, ok := object[tc.key]; !ok {
				t.Errorf("no %s in %s", tc.key, first)
			}
			if isList := strings.HasSuffix(strings.Join(strings.Fields(command)[:min(2, len(strings.Fields(command)))], " "), "list") || strings.Contains(command, "search") || strings.Contains(command, "history"); isList != (list != nil) {
				t.Errorf("an array: %v", list != nil)
			}
		})
	}
}

func TestEmptyLists(t *testing.T) {
	s := serve(t, newWorld())
	s.run("job", "list", "-o", "json").want(t, 0, "[]\n")
	got := s.run("job", "list")
	if got.want(t, 0, ""); got.stderr != "hodei: no jobs\n" {
		t.Errorf("%q", got.stderr)
	}
}

func TestListsArePagedByTheClient(t *testing.T) {
	w := newWorld()
	for range 5 {
		w.jobs = append(w.jobs, &schedulerv1.Job{Id: "j", State: "PENDING"})
	}
	s := serve(t, w)
	for limit, want := range map[string]int{"0": 5, "3": 3, "100": 5} {
		var jobs []any
		if err := json.Unmarshal([]byte(s.run("job", "list", "--limit", limit, "-o", "json").stdout), &jobs); err != nil || len(jobs) != want {
			t.Errorf("limit %s: %d jobs, %v", limit, len(jobs), err)
		}
	}
}

// last is the last request that the world has seen.
func last[M any](t *testing.T, w *world) M {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range slices.Backward(w.seen) {
		if m, ok := m.(M); ok {
			return m
		}
	}
	var none M
	t.Fatalf("no %T", none)
	return none
}

func TestFlagsReachTheServer(t *testing.T) {
	s := serve(t, aWorld())
	s.run("job", "list", "--state", "failed,RUNNING", "--namespace", "ns", "--label", "a=1", "--label", "b=2", "--since", "1h", "--until", "2030-01-01T00:00:00Z")
	list := last[*schedulerv1.ListJobsRequest](t, s.w)
	if strings.Join(list.GetStates(), " ") != "FAILED RUNNING" || list.GetNamespace() != "ns" || len(list.GetLabels()) != 2 || list.GetPageSize() != 100 ||
		time.Since(list.GetSince().AsTime()).Round(time.Minute) != time.Hour || list.GetUntil().AsTime().Year() != 2030 {
		t.Errorf("%v", list)
	}
	s.run("audit", "search", "--aggregate", "job/0198", "--correlation-id", "c-9", "--type", "A,B", "--type", "C", "--actor", "user/ann", "--namespace", "n", "--since", "24h", "--asc", "--limit", "1")
	search := last[*auditv1.SearchEventsRequest](t, s.w)
	if f := search.GetFilter(); f.GetAggregate() != "job/0198" || f.GetCorrelationId() != "c-9" || len(f.GetTypes()) != 3 || f.GetActor() != "user/ann" ||
		f.GetNamespace() != "n" || f.GetSince() == nil || !search.GetAscending() || search.GetPageSize() != 1 {
		t.Errorf("%v", search)
	}
	if c := s.w.calls[len(s.w.calls)-1]; c.CorrelationID == "c-9" || !strings.HasPrefix(c.Actor, "user/") || c.Actor == "user/anonymous" {
		t.Errorf("%+v", c)
	}
	s.run("provider", "register", "p", "--kind", "process", "--min-idle", "2", "--max-workers", "8", "--jobs-per-worker", "0", "--cpu", "1.5", "--memory", "2Gi", "--idle-timeout", "1m", "--run-as", "nobody", "--label", "zone=a", "--label", "note=x=y")
	spec := last[*provisionerv1.RegisterProviderRequest](t, s.w).GetSpec()
	if spec.GetMinIdle() != 2 || spec.GetMaxWorkers() != 8 || spec.JobsPerWorker == nil || spec.GetCpuMillis() != 1500 || spec.GetMemoryBytes() != 2<<30 || spec.GetIdleTimeout() != "1m" || spec.GetRunAs() != "nobody" ||
		!maps.Equal(spec.GetLabels(), map[string]string{"zone": "a", "note": "x=y"}) {
		t.Errorf("%v", spec)
	}
	s.run("job", "cancel", "0198", "--reason", "why", "--correlation-id", "c-7")
	if c := s.w.calls[len(s.w.calls)-1]; c.CorrelationID != "c-7" || last[*schedulerv1.CancelJobRequest](t, s.w).GetReason() != "why" {
		t.Errorf("%+v", c)
	}
}

func TestMisuse(t *testing.T) {
	s := serve(t, aWorld())
	for command, want := range map[string]string{
		"jbo":                               "did you mean job?",
		"job lst":                           "did you mean list",
		"job get":                           "JOB is missing",
		"job get a b":                       `unexpected argument "b"`,
		"job list --nope":                   "unknown flag: --nope",
		"job list --state GONE":             "one of [PENDING",
		"job list --limit -1":               "--limit",
		"job list --since yesterday":        "how long ago",
		"job list --label x":                "KEY=VALUE",
		"job list -o yaml":                  "text or json",
		"job logs x --stream both":          "stdout or stderr",
		"run":                               "a command is missing",
		"run --cpu lots true":               "--cpu",
		"run --cpu 0.0001 true":             "--cpu",
		"run --memory -1 true":              "--memory",
		"run --timeout soon true":           "30s, 5m or 1h30m",
		"run --env A true":                  "KEY=VALUE",
		"run --env-file /nope true":         "--env-file",
		"run --script x true":               "not both",
		"run --script x":                    "needs --interpreter",
		"run --interpreter sh true":         "needs --script",
		"run --max-attempts 0 true":         "at least 1",
		"submit --file x true":              "would be ignored",
		"submit --file x --name n":          "--name would be ignored",
		"submit --file /nope":               "--file",
		"worker token":                      "--provider is missing",
		"provider register x":               "--kind is missing",
		"audit trace":                       "JOB or --correlation-id",
		"audit trace x --correlation-id y":  "JOB or --correlation-id",
		"job list --server nonsense":        "host:port or unix:///path",
		"job list --server unix://relative": "absolute path",
		"completion tcsh":                   "bash, zsh or fish",
		"bench --jobs 0":                    "--jobs",
		"bench --rate 5 --batch 5":          "not both",
	} {
		t.Run(command, func(t *testing.T) {
			got := s.run(strings.Fields(command)...)
			got.want(t, 2, "")
			contains(t, got.stderr, "hodei: ", want)
		})
	}
}

func TestNoServer(t *testing.T) {
	s := serve(t, newWorld())
	s.stop()
	for _, command := range []string{"job list", "run true", "job watch x", "job logs -f x", "status", "submit true", "worker watch"} {
		t.Run(command, func(t *testing.T) {
			began := time.Now()
			got := s.run(strings.Fields(command)...)
			got.want(t, 3, "")
			contains(t, got.stderr, "cannot reach the server at "+s.addr, "hodei dev", "--server", "HODEI_SERVER")
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestAServerThatStartsIsWaitedFor(t *testing.T) {
	s := serve(t, newWorld())
	s.stop()
	r := &running{t: t, code: make(chan int, 1)}
	go func() {
		r.code <- Execute(t.Context(), Process{Args: []string{"submit", "--id", "x", "true"}, Environ: []string{"HODEI_SERVER=" + s.addr}, Stdout: &r.stdout, Stderr: &r.stderr})
	}()
	s.start()
	r.wait().want(t, 0, "x\n")
}

func TestStatusTellsTrouble(t *testing.T) {
	s := serve(t, aWorld())
	s.w.specs = []*schedulerv1.JobSpec{{Name: "unwell"}}
	got := s.run("status")
	if got.code != 1 {
		t.Errorf("code %d", got.code)
	}
	contains(t, got.stdout, "not ready, nats: away")
}

func TestWorkerWatchOutlivesStreams(t *testing.T) {
	w := aWorld()
	w.watchBreak = 3
	got := serve(t, w).run("worker", "watch", "w-1", "-o", "json")
	if n := strings.Count(got.stdout, "\n"); n != 3 || got.code != 0 {
		t.Errorf("%+v", got)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	a := newApp(Process{})
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if cmd.Short == "" || !strings.Contains(cmd.Example, "hodei ") {
			t.Errorf("%s: short %q, example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(a.root(nil))
}

func TestLogs(t *testing.T) {
	w := aWorld()
	w.chunk(1, &registryv1.LogChunk{Stream: "stdout", Data: []byte("out\nha")})
	w.chunk(1, &registryv1.LogChunk{Stream: "stderr", Data: []byte("err\n")})
	w.chunk(1, &registryv1.LogChunk{Stream: "stdout", Data: []byte("lf\n"), Eof: true})
	s := serve(t, w)
	got := s.run("job", "logs", "0198")
	if got.want(t, 0, "out\nhalf\n"); got.stderr != "err\n" {
		t.Errorf("stderr %q", got.stderr)
	}
	s.run("job", "logs", "-f", "0198", "--stream", "stdout").want(t, 0, "out\nhalf\n")
	s.run("job", "logs", "-f", "0198", "--attempt", "1", "--timestamps", "--stream", "stdout").want(t, 0, "2026-05-01T12:00:00.005Z out\n2026-05-01T12:00:00.005Z half\n")
	s.run("job", "logs", "0198", "--tail", "7", "--since", "1h", "--attempt", "2").want(t, 0, "")
	req := last[*registryv1.ReadLogsRequest](t, w)
	if req.GetTail() != 7 || req.GetSince() == nil || req.GetAttempt() != 2 || req.GetFollow() {
		t.Errorf("%v", req)
	}
	if got := s.run("job", "logs", "ffff"); got.code != 4 {
		t.Errorf("%+v", got)
	}
}
