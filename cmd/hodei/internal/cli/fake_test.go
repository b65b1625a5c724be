package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// world is what a fake server knows; it survives the server's restarts.
type world struct {
	schedulerv1.UnimplementedJobServiceServer
	registryv1.UnimplementedWorkerServiceServer
	registryv1.UnimplementedLogServiceServer
	provisionerv1.UnimplementedProviderServiceServer
	auditv1.UnimplementedAuditServiceServer
	auditv1.UnimplementedDeadLetterServiceServer
	platformv1.UnimplementedStatusServiceServer

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	jobs    []*schedulerv1.Job
	logs    map[int32][]*registryv1.LogChunk
	specs   []*schedulerv1.JobSpec
	ids     map[string]bool // of specs that came over a stream
	calls   []rpc.Call
	seen    []proto.Message

	// What it does wrong, and what it is told of.
	onQueue    func(w *world, spec *schedulerv1.JobSpec) error
	onCancel   func(w *world)
	onRetry    func(retries int) error              // an error is a lost answer
	onChunk    func(attempt int32, seq int64) error // an error ends the stream before the chunk
	deaf       bool                                 // ReadLogs forgets after_seq
	watchBreak int                                  // so many watches end after their first message
	batchBreak int                                  // so many batches after the first are taken but their answer is lost
	// onBatch is how the n-th job of all streams, from 1, is refused; "" takes it.
	onBatch func(n int) (kind, retryAfter string)
	batched int
	workers []*registryv1.Worker
	events  []*schedulerv1.Event
	noWatch bool
	door    *door
}

func newWorld() *world {
	return &world{changed: make(chan struct{}), logs: map[int32][]*registryv1.LogChunk{}, ids: map[string]bool{}}
}

// update changes the world and wakes who watches.
func (w *world) update(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updateLocked(change)
}

func (w *world) updateLocked(change func()) {
	change()
	close(w.changed)
	w.changed = make(chan struct{})
}

// saw remembers a request and who made it.
func (w *world) saw(ctx context.Context, m proto.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, rpc.CallFrom(ctx))
	w.seen = append(w.seen, proto.Clone(m))
}

func (w *world) find(id string) (*schedulerv1.Job, error) {
	for _, j := range w.jobs {
		if id != "" && strings.HasPrefix(j.GetId(), id) {
			return j, nil
		}
	}
	return nil, fault.New(fault.NotFound, "there is no job %s", id).WithCode("JOB_NOT_FOUND", "list the jobs that there are: `hodei job list`")
}

// set changes the only job.
func (w *world) set(change func(j *schedulerv1.Job)) {
	w.update(func() {
		j := proto.CloneOf(w.jobs[0])
		change(j)
		j.Version++
		w.jobs[0] = j
	})
}

// print adds output to an attempt of the only job.
func (w *world) print(attempt int32, stream, text string) {
	w.update(func() { w.chunk(attempt, &registryv1.LogChunk{Stream: stream, Data: []byte(text)}) })
}

func (w *world) chunk(attempt int32, c *registryv1.LogChunk) {
	c.Seq = int64(len(w.logs[attempt]) + 1)
	c.Time = timestamppb.New(time.Date(2026, 5, 1, 12, 0, 0, 5e6, time.UTC))
	w.logs[attempt] = append(w.logs[attempt], c)
}

// eof closes the log of an attempt.
func (w *world) eof(attempt int32) {
	w.update(func() { w.chunk(attempt, &registryv1.LogChunk{Stream: "stdout", Eof: true}) })
}

// end ends the only job.
func (w *world) end(state string, change func(j *schedulerv1.Job)) {
	w.set(func(j *schedulerv1.Job) {
		j.State = state
		change(j)
	})
}

func (w *world) QueueJob(ctx context.Context, req *schedulerv1.QueueJobRequest) (*schedulerv1.QueueJobResponse, error) {
	w.saw(ctx, req)
	w.mu.Lock()
	defer w.mu.Unlock()
	spec := req.GetSpec()
	if w.onQueue != nil {
		if err := w.onQueue(w, spec); err != nil {
			return nil, err
		}
	}
	if spec.GetId() != "" {
		if j, err := w.find(spec.GetId()); err == nil {
			return &schedulerv1.QueueJobResponse{Job: j, Existed: true}, nil
		}
	}
	c := rpc.CallFrom(ctx)
	j := &schedulerv1.Job{Id: spec.GetId(), Name: spec.GetName(), Namespace: spec.GetNamespace(), State: "PENDING", CorrelationId: c.CorrelationID, QueuedBy: c.Actor, Version: 2, Spec: spec}
	w.updateLocked(func() { w.jobs, w.specs = append(w.jobs, j), append(w.specs, spec) })
	return &schedulerv1.QueueJobResponse{Job: j}, nil
}

func (w *world) QueueJobs(stream grpc.BidiStreamingServer[schedulerv1.QueueJobsRequest, schedulerv1.QueueJobsResponse]) error {
	next := int64(0)
	for {
		m, err := stream.Recv()
		if err == io.EOF { //nolint:errorlint // what gRPC documents
			return nil
		}
		if err != nil {
			return err
		}
		resp := &schedulerv1.QueueJobsResponse{}
		w.mu.Lock()
		for _, spec := range m.GetSpecs() {
			result := &schedulerv1.QueueJobsResult{Index: next, JobId: spec.GetId()}
			next++
			w.batched++
			if w.onBatch != nil {
				if result.Kind, result.RetryAfter = w.onBatch(w.batched); result.Kind != "" {
					result.JobId, result.Error = "", "not now"
					resp.Results = append(resp.Results, result)
					continue
				}
			}
			if spec.GetName() == "refused" {
				result.JobId, result.Error = "", "the job is not valid: name: is refused"
			} else if !w.ids[spec.GetId()] {
				w.updateLocked(func() { w.specs, w.ids[spec.GetId()] = append(w.specs, spec), true })
			} else {
				result.Existed = true
			}
			resp.Results = append(resp.Results, result)
		}
		lost := w.batchBreak > 0 && w.batched > len(m.GetSpecs())
		if lost {
			w.batchBreak--
		}
		w.mu.Unlock()
		if lost {
			return fault.New(fault.Unavailable, "going away")
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (w *world) GetJob(ctx context.Context, req *schedulerv1.GetJobRequest) (*schedulerv1.GetJobResponse, error) {
	w.saw(ctx, req)
	w.mu.Lock()
	defer w.mu.Unlock()
	j, err := w.find(req.GetJobId())
	return &schedulerv1.GetJobResponse{Job: j}, err
}

func (w *world) ListJobs(ctx context.Context, req *schedulerv1.ListJobsRequest) (*schedulerv1.ListJobsResponse, error) {
	w.saw(ctx, req)
	w.mu.Lock()
	defer w.mu.Unlock()
	from, _ := strconv.Atoi(req.GetPageToken())                 // no token is 0
	to := min(from+int(min(req.GetPageSize(), 2)), len(w.jobs)) // small pages
	resp := &schedulerv1.ListJobsResponse{Jobs: w.jobs[from:to]}
	if to < len(w.jobs) {
		resp.NextPageToken = fmt.Sprint(to)
	}
	return resp, nil
}

func (w *world) WatchJob(req *schedulerv1.WatchJobRequest, stream grpc.ServerStreamingServer[schedulerv1.WatchJobResponse]) error {
	for sent := int64(0); ; {
		w.mu.Lock()
		j, err := w.find(req.GetJobId())
		changed := w.changed
		broken := w.watchBreak > 0
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if j.GetVersion() > sent {
			sent = j.GetVersion()
			if err := stream.Send(&schedulerv1.WatchJobResponse{Job: j}); err != nil {
				return err
			}
			if broken {
				w.mu.Lock()
				w.watchBreak--
				w.mu.Unlock()
				return fault.New(fault.Unavailable, "going away")
			}
			if terminal(j.GetState()) {
				return nil
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (w *world) CancelJob(ctx context.Context, req *schedulerv1.CancelJobRequest) (*schedulerv1.CancelJobResponse, error) {
	w.saw(ctx, req)
	w.mu.Lock()
	j, err := w.find(req.GetJobId())
	then := w.onCancel
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if then != nil {
		then(w)
	}
	j = proto.CloneOf(j)
	j.CancelRequested = true
	return &schedulerv1.CancelJobResponse{Job: j}, nil
}

func (w *world) RetryJob(ctx context.Context, req *schedulerv1.RetryJobRequest) (*schedulerv1.RetryJobResponse, error) {
	w.saw(ctx, req)
	w.mu.Lock()
	defer w.mu.Unlock()
	j, err := w.find(req.GetJobId())
	if err == nil && !terminal(j.GetState()) {
		err = fault.New(fault.Precondition, "job %s is %s: only a job that has ended can be retried", j.GetId(), j.GetState())
	}
	if err != nil {
		return nil, err
	}
	w.ids[req.GetNewJobId()] = true
	if w.onRetry != nil {
		if err := w.onRetry(len(w.ids)); err != nil {
			return nil, err
		}
	}
	return &schedulerv1.RetryJobResponse{Job: &schedulerv1.Job{Id: "new-one", RetryOf: j.GetId(), State: "PENDING"}}, nil
}

func (w *world) GetJobHistory(ctx context.Context, req *schedulerv1.GetJobHistoryRequest) (*schedulerv1.GetJobHistoryResponse, error) {
	w.saw(ctx, req)
	return &schedulerv1.GetJobHistoryResponse{Events: w.events}, nil
}

func (w *world) GetQueue(context.Context, *schedulerv1.GetQueueRequest) (*schedulerv1.GetQueueResponse, error) {
	return &schedulerv1.GetQueueResponse{Jobs: map[string]int64{"PENDING": 3, "RUNNING": 1}}, nil
}

func (w *world) ReadLogs(req *registryv1.ReadLogsRequest, stream grpc.ServerStreamingServer[registryv1.ReadLogsResponse]) error {
	w.saw(stream.Context(), req)
	attempt, after := req.GetAttempt(), req.GetAfterSeq()
	if w.deaf {
		after = 0
	}
	for {
		w.mu.Lock()
		j, err := w.find(req.GetJobId())
		changed := w.changed
		if attempt == 0 {
			attempt = j.GetAttempt()
		}
		var chunks []*registryv1.LogChunk
		for _, c := range w.logs[attempt] {
			if c.GetSeq() > after && (req.GetStream() == "" || req.GetStream() == c.GetStream()) {
				chunks = append(chunks, c)
			}
		}
		latest, over := j.GetAttempt(), terminal(j.GetState())
		w.mu.Unlock()
		if err != nil {
			return err
		}
		complete := false
		for _, c := range chunks {
			if w.onChunk != nil {
				if err := w.onChunk(attempt, c.GetSeq()); err != nil {
					return err
				}
			}
			if err := stream.Send(&registryv1.ReadLogsResponse{Attempt: attempt, Chunks: []*registryv1.LogChunk{c}}); err != nil {
				return err
			}
			after, complete = c.GetSeq(), c.GetEof()
		}
		switch {
		case !req.GetFollow(), complete && req.GetAttempt() != 0, over && (complete || latest == 0):
			return nil
		case complete && latest > attempt:
			attempt, after = latest, 0
			continue
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// server is a world that can be reached.
type server struct {
	t    *testing.T
	w    *world
	addr string
	stop func()
}

func serve(t *testing.T, w *world) *server {
	t.Helper()
	s := &server{t: t, w: w, addr: "unix://" + filepath.Join(t.TempDir(), "s")}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) start() {
	s.t.Helper()
	r, err := rpc.NewServer(rpc.Options{Listen: s.addr, Drain: time.Millisecond})
	if err != nil {
		s.t.Fatal(err)
	}
	schedulerv1.RegisterJobServiceServer(r.GRPC(), s.w)
	registryv1.RegisterWorkerServiceServer(r.GRPC(), s.w)
	registryv1.RegisterLogServiceServer(r.GRPC(), s.w)
	provisionerv1.RegisterProviderServiceServer(r.GRPC(), s.w)
	auditv1.RegisterAuditServiceServer(r.GRPC(), s.w)
	auditv1.RegisterDeadLetterServiceServer(r.GRPC(), s.w)
	platformv1.RegisterStatusServiceServer(r.GRPC(), s.w)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.Run(ctx)
	}()
	s.stop = func() {
		cancel()
		<-done
	}
}

// result is what a command left.
type result struct {
	code           int
	stdout, stderr string
}

// buffer is a bytes.Buffer that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// running is a command that has not ended yet.
type running struct {
	t              *testing.T
	stdout, stderr buffer
	signals        chan os.Signal
	code           chan int
}

func (s *server) begin(stdin string, args ...string) *running {
	r := &running{t: s.t, signals: make(chan os.Signal, 4), code: make(chan int, 1)}
	p := Process{
		Args: args, Environ: []string{"HODEI_SERVER=" + s.addr}, Stdin: strings.NewReader(stdin), Stdout: &r.stdout, Stderr: &r.stderr,
		Signals: r.signals, firstContact: 200 * time.Millisecond, reconnect: 5 * time.Second,
	}
	go func() { r.code <- Execute(context.Background(), p) }()
	return r
}

func (r *running) wait() result {
	r.t.Helper()
	select {
	case code := <-r.code:
		return result{code, r.stdout.String(), r.stderr.String()}
	case <-time.After(20 * time.Second):
		r.t.Fatalf("the command does not end; stdout %q, stderr %q", r.stdout.String(), r.stderr.String())
		return result{}
	}
}

// until waits for something to become true in what the command or the world did.
func (r *running) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			r.t.Fatalf("%s does not happen; stdout %q, stderr %q", what, r.stdout.String(), r.stderr.String())
		}
	}
}

func (s *server) run(args ...string) result { return s.begin("", args...).wait() }

// contains fails unless every part is in text.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

func (r result) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("code %d, stdout %q, stderr %q; want code %d, stdout %q", r.code, r.stdout, r.stderr, code, stdout)
	}
}

// WatchJobs lets every job succeed as soon as it is queued.
func (w *world) WatchJobs(_ *schedulerv1.WatchJobsRequest, stream grpc.ServerStreamingServer[schedulerv1.WatchJobsResponse]) error {
	if w.noWatch {
		return w.UnimplementedJobServiceServer.WatchJobs(nil, stream)
	}
	if err := stream.Send(&schedulerv1.WatchJobsResponse{}); err != nil {
		return err
	}
	w.mu.Lock()
	next := len(w.specs)
	w.mu.Unlock()
	for {
		w.mu.Lock()
		specs, changed := w.specs[next:], w.changed
		next = len(w.specs)
		w.mu.Unlock()
		m := &schedulerv1.WatchJobsResponse{}
		for _, s := range specs {
			for _, state := range []string{"ASSIGNED", "RUNNING", "SUCCEEDED"} {
				m.Changes = append(m.Changes, &schedulerv1.JobChange{JobId: s.GetId(), State: state, Attempt: 1})
			}
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
