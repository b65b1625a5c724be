package provisioner_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/aggregate"
	provisionerv1 "hodei.dev/proto/hodei/provisioner/v1"
)

func TestLifeOfAWorker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	id := w.request(p, "")
	w.await(id, worker.StateConnecting)
	daemon := w.daemon(id)
	w.connect(id)
	w.await(id, worker.StateReady)
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseIdle, "test") })
	got := w.await(id, worker.StateTerminated)
	if want := "WorkerProvisioningRequested WorkerProvisioned WorkerStatusChanged WorkerRegistered WorkerStatusChanged WorkerReady WorkerReadyForJob WorkerStatusChanged WorkerTerminated"; w.types(id) != want {
		t.Errorf("events %s\nwant %s", w.types(id), want)
	}
	if !got.Provisioned || got.Details["pid"] == "" || inState(w, daemon) {
		t.Errorf("worker %+v, its daemon %d", got, daemon)
	}
	events, err := w.store.Load(t.Context(), aggregate.WorkerStream(id), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, cause := range map[int]int{1: 0, 2: 0, 8: 7} {
		if e := events[i]; e.CausationID != events[cause].ID || e.CorrelationID != "corr-"+id || e.Actor != "service/provisioner" {
			t.Errorf("%s: caused by %s, correlation %s, actor %s", e.Type, e.CausationID, e.CorrelationID, e.Actor)
		}
	}
}

func inState(w *world, pid int) bool { return slices.Contains(w.processes(), pid) }

func TestKilledAgentEndsItsWorkerInTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.start()
	id := w.request(w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"}), "")
	w.await(id, worker.StateConnecting)
	w.connect(id)
	job := event.NewID()
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) { return now.Take(job, 1) })
	w.daemon(id)
	began := time.Now()
	if err := syscall.Kill(w.agentPID(id), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	got := w.await(id, worker.StateTerminated)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %s to confirm", took)
	}
	if left := w.processes(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if got.JobID != job || !strings.Contains(got.Reason, "agent has ended") {
		t.Errorf("the end does not name its job or its reason: %q %q", got.JobID, got.Reason)
	}
}

func TestAdoptedAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	stop := w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	kept, killed, given, late := w.request(p, ""), w.request(p, ""), w.request(p, ""), ""
	for _, id := range []string{kept, killed, given} {
		w.await(id, worker.StateConnecting)
		w.daemon(id)
		w.connect(id)
	}
	pid, issued := w.agentPID(kept), w.tokens.issued.Load()
	stop()
	// While nobody looks: an agent dies, a worker is given up, one is asked for.
	if err := syscall.Kill(w.agentPID(killed), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.registryDecides(given, func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseIdle, "test") })
	late = w.request(p, "")

	stop = w.start()
	w.await(killed, worker.StateTerminated)
	w.await(given, worker.StateTerminated)
	w.await(late, worker.StateConnecting)
	if got := w.worker(kept); got.State != worker.StateReady || w.count(kept, "WorkerProvisioned") != 1 || !inState(w, pid) {
		t.Errorf("the worker that went on is %s: %s", got.State, w.types(kept))
	}
	if n := w.tokens.issued.Load() - issued; n != 1 {
		t.Errorf("%d tokens were issued, want 1 for the new worker", n)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.await(kept, worker.StateTerminated)
	stop()
}

func TestTokenComesLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.tokens.away.Store(true)
	w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	waits, unwanted := w.request(p, ""), w.request(p, "")
	w.registryDecides(unwanted, func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseIdle, "test") })
	w.await(unwanted, worker.StateTerminated)
	w.tokens.away.Store(false)
	w.await(waits, worker.StateConnecting)
	if w.count(unwanted, "WorkerProvisioned") != 0 {
		t.Error("a worker was made that nobody wanted any more")
	}
}

func TestCreateFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	w.tokens.denied.Store(true)
	refused := w.request(p, "job-1")
	w.await(refused, worker.StateTerminated)
	w.tokens.denied.Store(false)
	if err := os.Chmod(w.cfg.AgentBinary, 0o644); err != nil {
		t.Fatal(err)
	}
	missing := w.request(p, "job-2")
	w.await(missing, worker.StateTerminated)
	nobodys := w.request(&provisionerv1.Provider{Id: uuid.NewString(), Spec: &provisionerv1.ProviderSpec{Name: "gone"}}, "")
	w.await(nobodys, worker.StateTerminated)
	for _, id := range []string{refused, missing, nobodys} {
		if want := "WorkerProvisioningRequested WorkerProvisioningFailed WorkerStatusChanged WorkerTerminated"; w.types(id) != want {
			t.Errorf("events %s\nwant %s", w.types(id), want)
		}
	}
	if left, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "workers")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAgentThatEndsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.AgentBinary = w.agent("#!/bin/sh\necho 'cannot find my legs' >&2\nexit 7\n")
	w.start()
	id := w.request(w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"}), "")
	got := w.await(id, worker.StateTerminated)
	if !strings.Contains(got.Reason, "exit status 7") || !strings.Contains(got.Reason, "cannot find my legs") {
		t.Errorf("the reason is %q", got.Reason)
	}
}

func TestZombieAndGhost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cleanup()
	stop := w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	zombie, ghost, busy := w.request(p, ""), w.request(p, ""), w.request(p, "")
	w.await(zombie, worker.StateConnecting)
	w.await(ghost, worker.StateConnecting)
	w.await(busy, worker.StateConnecting)
	orphaned := w.daemon(zombie)
	w.daemon(ghost)
	w.daemon(busy)
	stop()
	// What a crash, a restored database or an operator's hand leave.
	w.registryDecides(zombie, func(now worker.Worker) ([]worker.Event, error) { return now.Confirm("test") })
	pid := w.agentPID(ghost)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(w.daemon(ghost), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join("workers", ghost), filepath.Join("trees", ghost+".tree.json")} {
		if err := os.RemoveAll(filepath.Join(w.cfg.StateDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	w.start()
	if got := w.await(ghost, worker.StateTerminated); !strings.Contains(got.Reason, "does not exist any more") {
		t.Errorf("the reason is %q", got.Reason)
	}
	if took := time.Since(began); took < 5*time.Second {
		t.Errorf("confirmed after %s: one look is not enough", took)
	}
	eventingtest.Eventually(t, "the zombie's end", func() bool {
		_, err := os.Stat(filepath.Join(w.cfg.StateDir, "workers", zombie))
		return errors.Is(err, os.ErrNotExist) && syscall.Kill(orphaned, 0) != nil
	})
	// Each is on record, once, with what it was made for (R5.5).
	for _, typ := range []string{"OrphanResourceDetected", "OrphanResourceDestroyed"} {
		eventingtest.Eventually(t, typ, func() bool { return w.countOf(aggregate.ProviderStream(p.GetId()), typ) == 1 })
	}
	if w.countOf(aggregate.ProviderStream(p.GetId()), "OrphanResourceDetected") != 1 {
		t.Error("an orphan is recorded more than once")
	}
	// The clean-up has touched nobody who lives.
	if got := w.worker(busy); got.State != worker.StateConnecting {
		t.Errorf("the live worker is %s: %s", got.State, got.Reason)
	}
	if err := syscall.Kill(w.daemon(busy), 0); err != nil {
		t.Errorf("what the live worker runs: %v", err)
	}
}

func TestStopWorkersLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.StopWorkers = true
	grace(&w.cfg, 20*time.Second)
	stop := w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process", MinIdle: 2, MaxWorkers: 4})
	id := w.request(p, "")
	w.await(id, worker.StateConnecting)
	w.daemon(id)
	w.connect(id)
	eventingtest.Eventually(t, "two warm workers", func() bool { return len(w.live()) == 3 })
	stop()
	if left := w.live(); len(left) > 0 {
		t.Errorf("workers are left: %+v", left)
	}
	if left := w.processes(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if left, err := os.ReadDir(filepath.Join(w.cfg.StateDir, "workers")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if got := w.worker(id); !strings.Contains(w.types(id), "WorkerStatusChanged WorkerTerminated") || got.State != worker.StateTerminated {
		t.Errorf("its end was not told in order: %s", w.types(id))
	}
}

func TestForeignWorkerIsFencedByItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start()
	p := w.register(&provisionerv1.ProviderSpec{Name: "local", Kind: "process"})
	w.tokens.away.Store(true) // the other machine's provisioner is quicker
	id := w.request(p, "")
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) {
		facts, err := now.Connecting("test")
		return append([]worker.Event{worker.Provisioned{ProviderID: p.GetId(), Details: map[string]string{"instance": "another"}}}, facts...), err
	})
	w.connect(id)
	w.registryDecides(id, func(now worker.Worker) ([]worker.Event, error) { return now.Terminate(worker.CauseLost, "test") })
	if _, err := w.client.GetProvider(t.Context(), &provisionerv1.GetProviderRequest{Provider: "local"}); err != nil {
		t.Fatal(err)
	}
	if got := w.worker(id); got.State != worker.StateTerminating {
		t.Errorf("it is %s before its lease can have run out", got.State)
	}
	w.registryDecides(id, func(worker.Worker) ([]worker.Event, error) {
		return []worker.Event{worker.Disconnected{Epoch: 1, Reason: "stopped", Clean: true}}, nil
	})
	w.await(id, worker.StateTerminated)
}
