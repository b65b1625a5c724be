package provisioner_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/service/aggregate"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
	"hodei.dev/services/provisioner"
)

func TestRegisterListGetRemove(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.cfg.Providers = []provisioner.ProviderSpec{{Name: "configured", MaxWorkers: 3, Labels: map[string]string{"zone": "a"}}}
	w.start()
	eventingtest.Eventually(t, "the configured provider to be registered", func() bool {
		got, err := w.client.GetProvider(t.Context(), &provisionerv1.GetProviderRequest{Provider: "configured"})
		return err == nil && maps.Equal(got.GetProvider().GetSpec().GetLabels(), map[string]string{"zone": "a"})
	})
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	if s := p.GetSpec(); s.GetMaxWorkers() != int32(2*runtime.NumCPU()) || s.GetJobsPerWorker() != 1 || s.GetIdleTimeout() != "5m0s" ||
		s.GetScheduledTimeout() != "5m0s" || s.GetCpuMillis() != int64(1000*runtime.NumCPU()) || s.GetMemoryBytes() == 0 {
		t.Errorf("defaults: %v", s)
	}
	if p.GetId() != provider.ID("local") || p.GetState() != "ENABLED" || p.GetHealth() != "HEALTHY" || p.GetIsolation() == "" || p.GetVersion() != 1 {
		t.Errorf("registered %v", p)
	}
	if again := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"}); again.GetVersion() != 1 {
		t.Errorf("the same again is a change: version %d", again.GetVersion())
	}
	if changed := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MaxWorkers: 5}); changed.GetVersion() != 2 || changed.GetSpec().GetMaxWorkers() != 5 {
		t.Errorf("updated %v", changed)
	}
	labels := map[string]string{"zone": "b", "gpu": ""}
	if labelled := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MaxWorkers: 5, Labels: labels}); labelled.GetVersion() != 3 || !maps.Equal(labelled.GetSpec().GetLabels(), labels) {
		t.Errorf("labelled %v", labelled)
	}
	for name, spec := range map[string]*provisionerv1.ProviderSpec{
		"a bad label": {Name: "x", Kind: "process", Labels: map[string]string{"-": ""}},
		"a bad name":  {Name: "Not A Label", Kind: "process"}, "an unknown kind": {Name: "x", Kind: "cloud"}, "no spec": nil,
		"a bad duration": {Name: "x", Kind: "process", IdleTimeout: "soon"}, "a negative one": {Name: "x", Kind: "process", ScheduledTimeout: "-1s"},
		"a warm external one": {Name: "x", Kind: "external", MinIdle: 1}, "an unknown user": {Name: "x", Kind: "process", RunAs: "no-such-user"},
	} {
		if _, err := w.client.RegisterProvider(t.Context(), &provisionerv1.RegisterProviderRequest{Spec: spec}); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := w.client.RegisterProvider(t.Context(), &provisionerv1.RegisterProviderRequest{Spec: &provisionerv1.ProviderSpec{Name: "local", Kind: "external"}}); !errors.Is(err, fault.AlreadyExists) {
		t.Errorf("another kind under the same name: %v", err)
	}
	id := w.request(p, event.NewID())
	w.await(id, worker.StateConnecting)
	eventingtest.Eventually(t, "the worker in the counts", func() bool {
		got, err := w.client.GetProvider(t.Context(), &provisionerv1.GetProviderRequest{Provider: p.GetId()[:13]})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetProvider().GetWorkers() == 1 && got.GetProvider().GetReservedCpuMillis() == 100
	})
	w.connect(id)
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) { return now.Take(event.NewID(), 1) })
	eventingtest.Eventually(t, "the busy worker", func() bool {
		got, err := w.client.GetProvider(t.Context(), &provisionerv1.GetProviderRequest{Provider: "local"})
		return err == nil && got.GetProvider().GetWorkersBusy() == 1
	})
	ctx := rpc.WithCall(t.Context(), rpc.Call{Actor: "user/jo", CorrelationID: "c1"})
	for _, name := range []string{"nothing", "ffffffff", ""} {
		_, err := w.client.RemoveProvider(ctx, &provisionerv1.RemoveProviderRequest{Provider: name})
		if !errors.Is(err, fault.NotFound) && !errors.Is(err, fault.Invalid) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	idle := w.request(p, "")
	w.await(idle, worker.StateConnecting)
	w.connect(idle)
	removed, err := w.client.RemoveProvider(ctx, &provisionerv1.RemoveProviderRequest{Provider: "local"})
	if err != nil || removed.GetProvider().GetState() != "REMOVED" {
		t.Fatalf("removed %v, %v", removed, err)
	}
	if got := w.await(id, worker.StateDraining); got.Reason != "drained by user/jo" {
		t.Errorf("the busy worker's reason is %q", got.Reason)
	}
	w.await(idle, worker.StateTerminated)
	tooLate := w.request(p, "")
	w.await(tooLate, worker.StateTerminated)
	if w.count(tooLate, "WorkerProvisioned") != 0 {
		t.Error("a removed provider made a worker")
	}
	for all, want := range map[bool]int{false: 1, true: 2} {
		list, err := w.client.ListProviders(t.Context(), &provisionerv1.ListProvidersRequest{IncludeRemoved: all})
		if err != nil || len(list.GetProviders()) != want {
			t.Errorf("list, removed too: %v: %v, %v", all, list, err)
		}
	}
	events, err := w.store.Load(t.Context(), aggregate.ProviderStream(p.GetId()), 0)
	if last := events[len(events)-1]; err != nil || last.Actor != "user/jo" || last.CorrelationID != "c1" {
		t.Errorf("removal: %+v, %v", last, err)
	}
}

func TestWarmPool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MinIdle: 2, MaxWorkers: 3})
	eventingtest.Eventually(t, "two workers", func() bool { return len(w.live()) == 2 })
	one := w.live()[0]
	if events, err := w.store.Load(t.Context(), aggregate.WorkerStream(one.ID), 0); err != nil || events[0].Actor != "service/provisioner" || events[0].CorrelationID == "" || one.WaitingJobID != "" {
		t.Errorf("a warm worker: %+v, %v", one, err)
	}
	w.await(one.ID, worker.StateConnecting)
	w.connect(one.ID)
	w.registryDecides(one.ID, func(now worker.Worker) ([]worker.Event, error) { return now.Take(event.NewID(), 1) })
	eventingtest.Eventually(t, "a third one", func() bool { return len(w.live()) == 3 })
	// Another one is busy: one is missing, but there may be no more than three.
	var other worker.Worker
	for _, l := range w.live() {
		if l.ID != one.ID {
			other = l
		}
	}
	w.await(other.ID, worker.StateConnecting)
	w.connect(other.ID)
	w.registryDecides(other.ID, func(now worker.Worker) ([]worker.Event, error) { return now.Take(event.NewID(), 1) })
	w.registryDecides(one.ID, func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseDone, "test") })
	w.await(one.ID, worker.StateTerminated)
	eventingtest.Eventually(t, "its place to be taken", func() bool { return len(w.live()) == 3 })
	total := 0
	if err := count(w, &total); err != nil || total != 4 {
		t.Errorf("%d workers were made, %v; want 4: never more than max_workers at a time", total, err)
	}
	_ = p
}

// count counts all workers that ever were.
func count(w *world, total *int) error {
	rows, err := w.store.FindStreams(w.t.Context(), "worker", "", 1000)
	*total = len(rows)
	return err
}

func TestWarmPoolDoesNotRunHot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.AgentBinary = w.agent("#!/bin/sh\nexit 1\n")
	w.start()
	w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MinIdle: 1, MaxWorkers: 3})
	began, total := time.Now(), 0
	eventingtest.Eventually(t, "a third try", func() bool { return count(w, &total) == nil && total >= 3 })
	if took := time.Since(began); took < 2500*time.Millisecond {
		t.Errorf("three tries took %s: the pauses are 1s and 2s", took)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.start()
	if err := os.Rename(w.cfg.AgentBinary, w.cfg.AgentBinary+".away"); err != nil {
		t.Fatal(err)
	}
	w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MinIdle: 1})
	health := func(want string) {
		t.Helper()
		eventingtest.Eventually(t, "the provider to be "+want, func() bool {
			got, err := w.client.GetProvider(t.Context(), &provisionerv1.GetProviderRequest{Provider: "local"})
			return err == nil && got.GetProvider().GetHealth() == want
		})
	}
	health("UNHEALTHY")
	if err := os.Rename(w.cfg.AgentBinary+".away", w.cfg.AgentBinary); err != nil {
		t.Fatal(err)
	}
	w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MinIdle: 1, MaxWorkers: 7}) // a reason to look
	health("HEALTHY")
	eventingtest.Eventually(t, "the warm worker", func() bool {
		for _, l := range w.live() {
			if l.State == worker.StateConnecting {
				return true
			}
		}
		return false
	})
}

func TestExternal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	w.register(&provisionerv1.ProviderSpec{Name: "fleet", Kind: "external", MaxWorkers: 3})
	issue := func(name, ttl string) (*provisionerv1.IssueWorkerTokenResponse, error) {
		return w.client.IssueWorkerToken(rpc.WithCall(t.Context(), rpc.Call{Actor: "user/jo"}), &provisionerv1.IssueWorkerTokenRequest{Provider: name, Ttl: ttl})
	}
	for name, c := range map[string]struct {
		provider, ttl string
		want          error
	}{
		"one that starts its own": {"local", "", fault.Precondition}, "unknown": {"nothing", "", fault.NotFound},
		"too long": {"fleet", "1h", fault.Invalid}, "no duration": {"fleet", "x", fault.Invalid},
	} {
		if _, err := issue(c.provider, c.ttl); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	w.tokens.denied.Store(true)
	if _, err := issue("fleet", ""); !errors.Is(err, fault.Precondition) {
		t.Errorf("registry refuses: %v", err)
	}
	w.tokens.denied.Store(false)
	eventingtest.Eventually(t, "the end of the worker without a token", func() bool { return len(w.live()) == 0 })

	leaves, never, silent := mustIssue(t, issue), mustIssue(t, issue), mustIssue(t, issue)
	if leaves.GetToken() != "token-of-"+leaves.GetWorkerId() || leaves.GetAgentAddress() == "" || leaves.GetExpiresAt() == nil {
		t.Errorf("issued %v", leaves)
	}
	if _, err := issue("fleet", ""); !errors.Is(err, fault.Exhausted) {
		t.Errorf("more than max_workers: %v", err)
	}
	// Until its agent comes it is CREATING, which has the longer deadline.
	if got := w.worker(leaves.GetWorkerId()); got.State != worker.StateCreating || got.Provisioned {
		t.Errorf("before its agent came: %+v", got)
	}
	w.connect(leaves.GetWorkerId())
	eventingtest.Eventually(t, "WorkerProvisioned", func() bool { return w.worker(leaves.GetWorkerId()).Provisioned })
	w.connect(silent.GetWorkerId())
	goodbye := worker.Disconnected{Epoch: 1, Reason: "stopped by its operator", Clean: true}
	w.registryDecides(leaves.GetWorkerId(), func(worker.Worker) ([]worker.Event, error) { return []worker.Event{goodbye}, nil })
	if got := w.await(leaves.GetWorkerId(), worker.StateTerminated); got.Reason != "its agent has said goodbye" {
		t.Errorf("the reason is %q", got.Reason)
	}
	terminate := func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseIdle, "test") }
	w.registryDecides(never.GetWorkerId(), terminate)
	w.await(never.GetWorkerId(), worker.StateTerminated)
	w.registryDecides(silent.GetWorkerId(), terminate)
	w.registryDecides(silent.GetWorkerId(), func(worker.Worker) ([]worker.Event, error) { return []worker.Event{goodbye}, nil })
	w.await(silent.GetWorkerId(), worker.StateTerminated)
	if left, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "workers")); err != nil || len(left) > 0 {
		t.Errorf("an external worker has something here: %v, %v", left, err)
	}
}

func mustIssue(t *testing.T, issue func(name, ttl string) (*provisionerv1.IssueWorkerTokenResponse, error)) *provisionerv1.IssueWorkerTokenResponse {
	t.Helper()
	out, err := issue("fleet", "1m")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestConfig(t *testing.T) {
	t.Parallel()
	c := provisioner.Default()
	c.PostgresURL, c.NATSURL = "postgres://x", "nats://x"
	err := c.Validate()
	if !errors.Is(err, fault.Invalid) {
		t.Fatalf("no registry: %v", err)
	}
	c.RegistryAddress = "127.0.0.1:1"
	c.Providers = []provisioner.ProviderSpec{{Name: "a"}, {Name: "b", Kind: "external"}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c.Providers = []provisioner.ProviderSpec{{Name: "a"}, {Name: "a"}, {Name: "c", Kind: "cloud"}, {Name: "d", Labels: map[string]string{"-": ""}}}
	if f, ok := errors.AsType[*fault.Error](c.Validate()); !ok || len(f.Fields) != 3 || f.Fields[2].Name != "providers[3].labels" {
		t.Fatalf("got %v", f)
	}
}
