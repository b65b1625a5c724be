package rpc

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/nats"
	"hodei.dev/services/registry/internal/postgres"
)

const (
	defaultPage = 100
	largestPage = 1000
	// watchBuffer is how many events may wait for one watcher before it loses its stream.
	watchBuffer = 4096
)

// Workers serves WorkerService and WorkerTokenService. Its fields are set once.
type Workers struct {
	registryv1.UnimplementedWorkerServiceServer
	registryv1.UnimplementedWorkerTokenServiceServer
	App  *app.App
	List *postgres.Workers
	Hub  *nats.Hub
	// Meta is the context of what a call appends.
	Meta func(ctx context.Context) event.Meta
	// AgentAddress is where agents dial in.
	AgentAddress string
}

// ListWorkers lists workers, newest first, as the projection has them.
func (w *Workers) ListWorkers(ctx context.Context, r *registryv1.ListWorkersRequest) (*registryv1.ListWorkersResponse, error) {
	var wrong fault.Fields
	for _, s := range r.GetStates() {
		if !slices.Contains(worker.Transitions.States, worker.State(s)) {
			wrong.Add("states", "%q is no state of a worker", s)
		}
	}
	size := int(r.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	if size < 1 || size > largestPage {
		wrong.Add("page_size", "must be 1 to %d", largestPage)
	}
	if err := wrong.Err("the request"); err != nil {
		return nil, err
	}
	listed, next, err := w.List.List(ctx, postgres.Filter{
		States: r.GetStates(), Terminated: r.GetIncludeTerminated(), Provider: r.GetProvider(), Limit: size, Token: r.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	resp := &registryv1.ListWorkersResponse{NextPageToken: next}
	for _, l := range listed {
		resp.Workers = append(resp.Workers, wireWorker(l.Worker, l.LastHeartbeatAt))
	}
	return resp, nil
}

// GetWorker is a worker as the log has it now.
func (w *Workers) GetWorker(ctx context.Context, r *registryv1.GetWorkerRequest) (*registryv1.GetWorkerResponse, error) {
	id, err := w.App.ResolveWorker(ctx, r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	found, err := w.App.Worker(ctx, id)
	if err != nil {
		return nil, err
	}
	out, err := w.withHeartbeat(ctx, found)
	return &registryv1.GetWorkerResponse{Worker: out}, err
}

func (w *Workers) withHeartbeat(ctx context.Context, f worker.Worker) (*registryv1.Worker, error) {
	seen, err := w.App.Credentials.LastHeartbeats(ctx, []string{f.ID})
	if err != nil {
		return nil, err
	}
	return wireWorker(f, seen[f.ID]), nil
}

// DrainWorker has a worker take nothing new, or undoes that.
func (w *Workers) DrainWorker(ctx context.Context, r *registryv1.DrainWorkerRequest) (*registryv1.DrainWorkerResponse, error) {
	id, err := w.App.ResolveWorker(ctx, r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	changed, err := w.App.Drain(ctx, w.Meta(ctx), id, r.GetUndo())
	if err != nil {
		return nil, err
	}
	out, err := w.withHeartbeat(ctx, changed)
	return &registryv1.DrainWorkerResponse{Worker: out}, err
}

// TerminateWorker has a worker destroyed.
func (w *Workers) TerminateWorker(ctx context.Context, r *registryv1.TerminateWorkerRequest) (*registryv1.TerminateWorkerResponse, error) {
	id, err := w.App.ResolveWorker(ctx, r.GetWorkerId())
	if err != nil {
		return nil, err
	}
	changed, err := w.App.Terminate(ctx, w.Meta(ctx), id, r.GetReason())
	if err != nil {
		return nil, err
	}
	out, err := w.withHeartbeat(ctx, changed)
	return &registryv1.TerminateWorkerResponse{Worker: out}, err
}

// IssueToken makes the registration token of a worker.
func (w *Workers) IssueToken(ctx context.Context, r *registryv1.IssueTokenRequest) (*registryv1.IssueTokenResponse, error) {
	var wrong fault.Fields
	if r.GetWorkerId() == "" {
		wrong.Add("worker_id", "is empty")
	}
	var ttl time.Duration
	if r.GetTtl() != "" {
		var err error
		if ttl, err = time.ParseDuration(r.GetTtl()); err != nil || ttl <= 0 {
			wrong.Add("ttl", "%q must be a duration above zero, written like 5m", r.GetTtl())
		}
	}
	if err := wrong.Err("the request"); err != nil {
		return nil, err
	}
	token, expires, err := w.App.IssueToken(ctx, r.GetWorkerId(), ttl)
	if err != nil {
		return nil, err
	}
	return &registryv1.IssueTokenResponse{Token: token, ExpiresAt: timestamppb.New(expires), AgentAddress: w.AgentAddress}, nil
}

// WatchWorkers sends each change as it happens.
func (w *Workers) WatchWorkers(r *registryv1.WatchWorkersRequest, stream registryv1.WorkerService_WatchWorkersServer) error {
	ctx := stream.Context()
	id := ""
	if r.GetWorkerId() != "" {
		var err error
		if id, err = w.App.ResolveWorker(ctx, r.GetWorkerId()); err != nil {
			return err
		}
	}
	// First listen, then load: what happens in between is seen twice, never missed.
	watch, err := w.Hub.Watch(ctx, id, watchBuffer)
	if err != nil {
		return err
	}
	defer watch.Close()
	f := &watching{workers: w, stream: stream, known: map[string]worker.Worker{}}
	if id != "" {
		if over, err := f.load(ctx, id); err != nil || over {
			return err
		}
	} else if err := stream.SendHeader(nil); err != nil { // the watch has begun
		return err
	}
	for {
		select {
		case e := <-watch.C():
			if watch.Missed() {
				return fault.New(fault.Unavailable, "the watcher is too slow and has missed changes").WithCode("WATCH_TOO_SLOW", "watch again")
			}
			over, err := f.follow(ctx, e, id)
			if err != nil || over && id != "" {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// watching is one watcher's stream.
type watching struct {
	workers *Workers
	stream  registryv1.WorkerService_WatchWorkersServer
	// known are the workers that have been seen and live.
	known map[string]worker.Worker
}

// follow sends what an event makes of its worker; over: the worker's life is.
func (f *watching) follow(ctx context.Context, e event.Event, id string) (over bool, err error) {
	if e.Type == "" { // something may have been missed
		if id != "" {
			return f.load(ctx, id)
		}
		for id := range f.known {
			if _, err := f.load(ctx, id); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	old, seen := f.known[e.Stream.ID]
	if e.StreamVersion <= old.Version {
		return false, nil
	}
	if old.Version+1 != e.StreamVersion && (seen || e.StreamVersion > 1) {
		// As it was at this event: those after it are still to come.
		if old, err = f.workers.App.WorkerAt(ctx, e.Stream.ID, e.StreamVersion); err != nil {
			return false, err
		}
		return f.send(ctx, old)
	}
	now, err := aggregate.EvolveWorker(old, e)
	if err != nil {
		return false, err
	}
	return f.send(ctx, now)
}

func (f *watching) load(ctx context.Context, id string) (over bool, err error) {
	now, err := f.workers.App.Worker(ctx, id)
	if err != nil {
		return false, err
	}
	if old, seen := f.known[id]; seen && old.Version == now.Version {
		return false, nil
	}
	return f.send(ctx, now)
}

func (f *watching) send(ctx context.Context, now worker.Worker) (over bool, err error) {
	if over = now.State.Terminal(); over {
		delete(f.known, now.ID)
	} else {
		f.known[now.ID] = now
	}
	out, err := f.workers.withHeartbeat(ctx, now)
	if err != nil {
		return false, err
	}
	return over, f.stream.Send(&registryv1.WatchWorkersResponse{Worker: out})
}

func wireWorker(w worker.Worker, heartbeat time.Time) *registryv1.Worker {
	return &registryv1.Worker{
		Id: w.ID, State: string(w.State), ProviderId: w.ProviderID, ProviderName: w.ProviderName,
		JobId: w.JobID, Attempt: int32(w.Attempt), JobsDone: int32(w.JobsDone), JobsPerWorker: int32(w.JobsPerWorker),
		Connected: w.Connected, Epoch: w.Epoch, Reason: w.Reason, Cause: string(w.Cause), Resource: w.Resource, Details: w.Details,
		AgentVersion: w.AgentVersion, Hostname: w.Hostname,
		CreatedAt: stamp(w.CreatedAt), ReadyAt: stamp(w.ReadyAt), ChangedAt: stamp(w.ChangedAt), TerminatedAt: stamp(w.TerminatedAt),
		LastHeartbeatAt: stamp(heartbeat), CpuMillis: w.CPUMillis, MemoryBytes: w.MemoryBytes, Version: int64(w.Version),
	}
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
