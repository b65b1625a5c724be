package core_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"

	"hodei.dev/services/dispatcher/core"
)

func priority(n int) func(*job.Spec)      { return func(s *job.Spec) { s.Priority = n } }
func namespace(ns string) func(*job.Spec) { return func(s *job.Spec) { s.Namespace = ns } }
func at(provider string) func(*job.Spec) {
	return func(s *job.Spec) { s.Placement.Provider = provider }
}
func memory(n int64) func(*job.Spec) { return func(s *job.Spec) { s.Resources.MemoryBytes = n } }
func cpu(n int64) func(*job.Spec)    { return func(s *job.Spec) { s.Resources.CPUMillis = n } }
func offers(cpu, mem int64) func(*provider.Spec) {
	return func(s *provider.Spec) { s.CPUMillis, s.MemoryBytes = cpu, mem }
}

func requires(labels ...string) func(*job.Spec) {
	return func(s *job.Spec) { s.Placement.RequiredLabels = pairs(labels) }
}

func labelled(labels ...string) func(*provider.Spec) {
	return func(s *provider.Spec) { s.Labels = pairs(labels) }
}

func pairs(labels []string) map[string]string {
	out := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		out[labels[i]] = labels[i+1]
	}
	return out
}
func reused(s *provider.Spec)   { s.JobsPerWorker = 0 }
func external(s *provider.Spec) { s.Kind = provider.External }

// step is something that happens, and the decisions that follow.
type step struct {
	name string
	do   func(*world)
	want []string
}

type story struct {
	name  string
	steps []step
}

func (s story) tell(t *testing.T) {
	w := newWorld(t)
	for i, step := range s.steps {
		step.do(w)
		if diff := cmp.Diff(step.want, w.decide()); diff != "" {
			t.Fatalf("step %d (%s): decisions (-want +got):\n%s", i+1, step.name, diff)
		}
	}
}

// TestDecide: given what has happened, when the state is asked, then it decides
// these things in this order. Each step's decisions become true before the next.
func TestDecide(t *testing.T) {
	var any job.Resources
	ok := job.Result{}
	for _, test := range []story{
		{"an idle worker before a new one, and only once", []step{
			{"a job and a worker", func(w *world) { w.register("local", 4, reused); w.idle("x", "local", any); w.queue("a", nil) }, []string{"assign a to x"}},
			{"nothing new", func(*world) {}, nil},
			{"one more job", func(w *world) { w.queue("b", nil) }, []string{"schedule b at local"}},
			{"the worker is free first", func(w *world) { w.finish("a", ok) }, []string{"assign b to x"}},
			{"the worker made for b is everybody's", func(w *world) { w.up("w1"); w.queue("c", nil) }, []string{"assign c to w1"}},
		}},
		{"required labels", []step{
			{"two providers", func(w *world) {
				w.register("plain", 4, labelled("zone", "a"))
				w.register("gpu", 4, labelled("zone", "b", "gpu", "yes"))
			}, nil},
			{"all of them, with their values", func(w *world) { w.queue("a", requires("gpu", "yes", "zone", "b")) }, []string{"schedule a at gpu"}},
			{"an idle worker serves who fits it", func(w *world) { w.idle("x", "gpu", any); w.queue("b", requires("zone", "a")) }, []string{"assign a to x", "schedule b at plain"}},
			{"nobody has them", func(w *world) { w.queue("c", requires("gpu", "yes", "zone", "a")) }, []string{
				`defer c: [provider gpu: label zone is "b" and not "a" provider plain: has no label gpu]`,
			}},
			{"others are not held back", func(w *world) { w.queue("d", requires("gpu", "yes")); w.queue("e", nil) }, []string{"schedule d at gpu", "schedule e at plain"}},
			{"until one gets them", func(w *world) { w.register("plain", 4, labelled("zone", "a", "gpu", "yes")) }, []string{"schedule c at plain"}},
		}},
		{"priority, then fair share, then age", []step{
			{"no room", func(w *world) {
				w.register("local", 1, reused)
				w.queue("first", nil)
				w.queue("n1", namespace("n"))
				w.queue("n2", namespace("n"))
				w.queue("m1", namespace("m"))
				w.queue("high", priority(5))
			}, []string{"schedule high at local"}},
			{"high gets its worker", func(w *world) { w.up("w1") }, []string{"assign high to w1"}},
			// The default namespace has none live once high has ended.
			{"the oldest", func(w *world) { w.finish("high", ok) }, []string{"assign first to w1"}},
			{"then the others by age", func(w *world) { w.finish("first", ok) }, []string{"assign n1 to w1"}},
			{"fair share: m has none live", func(w *world) { w.register("local", 2, reused) }, []string{"schedule m1 at local"}},
			{"m1 is live already, n has none", func(w *world) { w.finish("n1", ok) }, []string{"assign n2 to w1"}},
			{"its own worker", func(w *world) { w.up("w2") }, []string{"assign m1 to w2"}},
		}},
		{"a job that fits nowhere holds nobody back", []step{
			{"big before small", func(w *world) {
				w.register("local", 4, offers(4000, 24*gib))
				w.queue("big", memory(64*gib))
				w.queue("small", memory(gib))
			}, []string{"schedule small at local", "defer big: [provider local: needs 64 GiB memory, has 24 GiB in all]"}},
			{"said once", func(w *world) { w.queue("small2", memory(gib)) }, []string{"schedule small2 at local"}},
			{"the next of that shape hears it too", func(w *world) { w.queue("big2", memory(64*gib)) }, []string{"defer big2: [provider local: needs 64 GiB memory, has 24 GiB in all]"}},
			{"a bigger provider", func(w *world) { w.register("huge", 1, offers(0, 128*gib)) }, []string{"schedule big at huge"}},
			{"huge fell ill: big2 only waits for local's sake no more", func(w *world) {
				w.provider("huge", provider.HealthChanged{From: provider.Healthy, To: provider.Unhealthy, Reason: "no answer"})
			}, []string{"defer big2: [provider huge: unhealthy: no answer provider local: needs 64 GiB memory, has 24 GiB in all]"}},
		}},
		{"reasons in words", []step{
			{"nothing at all", func(w *world) { w.queue("a", nil); w.queue("b", at("mars")) }, []string{
				"defer a: [there is no provider: register one with `hodei provider register`]",
				"defer b: [there is no provider \"mars\": see `hodei provider list`]",
			}},
			{"mars with one core and no agents", func(w *world) {
				w.register("mars", 4, func(s *provider.Spec) { external(s); s.CPUMillis = 1000 })
				w.queue("c", cpu(2500))
			}, []string{
				"defer a: [provider mars: it has no workers, and its operator starts them: see `hodei worker token`]",
				"defer b: [provider mars: it has no workers, and its operator starts them: see `hodei worker token`]",
				"defer c: [provider mars: needs 2.5 cores, has 1 core in all]",
			}},
			{"an agent dials in", func(w *world) { w.idle("x", "mars", any) }, []string{"assign a to x"}},
			{"gone for good", func(w *world) { w.provider("mars", provider.Removed{By: "test"}) }, []string{
				"defer b: [provider mars: removed]", "defer c: [there is no provider: register one with `hodei provider register`]",
			}},
		}},
		{"reservations", []step{
			{"two fit", func(w *world) {
				w.register("local", 9, func(s *provider.Spec) { reused(s); s.CPUMillis = 2000 })
				for _, id := range []string{"a", "b", "c"} {
					w.queue(id, cpu(1000))
				}
				w.queue("free", nil)
			}, []string{"schedule a at local", "schedule b at local", "schedule free at local"}},
			{"they run", func(w *world) { w.up("w1"); w.up("w2"); w.up("w3") }, []string{"assign a to w1", "assign b to w2", "assign free to w3"}},
			{"w3 is idle, but the cores are taken", func(w *world) { w.finish("free", ok) }, nil},
			{"a core is free", func(w *world) { w.finish("a", ok) }, []string{"assign c to w3"}},
		}},
		{"a worker's own limits", []step{
			{"too small a worker", func(w *world) {
				w.register("local", 2, reused)
				w.idle("x", "local", job.Resources{MemoryBytes: gib})
				w.queue("a", memory(2*gib))
				w.queue("b", memory(gib))
			}, []string{"schedule a at local", "assign b to x"}},
		}},
		{"the least recently used worker", []step{
			{"x was idle first", func(w *world) {
				w.register("local", 2, reused)
				w.idle("x", "local", any)
				w.idle("y", "local", any)
				w.queue("a", nil)
			}, []string{"assign a to x"}},
			{"x comes back behind y", func(w *world) { w.finish("a", ok); w.queue("b", nil) }, []string{"assign b to y"}},
		}},
		{"the most room, else the first by name", []step{
			{"", func(w *world) {
				w.register("b", 2, nil)
				w.register("a", 2, nil)
				w.register("tiny", 1, nil)
				for _, id := range []string{"1", "2", "3"} {
					w.queue(id, nil)
				}
				w.queue("named", at("tiny"))
			}, []string{"schedule 1 at a", "schedule 2 at b", "schedule 3 at a", "schedule named at tiny"}},
		}},
		{"the worker never comes", []step{
			{"", func(w *world) { w.register("local", 1, nil); w.queue("a", nil) }, []string{"schedule a at local"}},
			{"the provider says why", func(w *world) {
				w.worker("w1", worker.ProvisioningFailed{ProviderID: "local", JobID: "a", Reason: "no disk"})
				w.worker("w1", must[worker.Event](w.tb)(w.workers["w1"].Terminate(worker.CauseProvisioning, "no disk"))...)
			}, []string{"abandon a: its worker could not be made: no disk"}},
			{"a is held back, and the worker still exists", func(w *world) { w.destroy("w1", "", "") }, nil},
			{"its time has come", func(w *world) { w.now = w.now.Add(time.Second) }, []string{"schedule a at local"}},
			{"drained before it took the job", func(w *world) {
				w.up("w2")
				w.worker("w2", must[worker.Event](w.tb)(w.workers["w2"].Drain("user/x"))...)
			}, []string{"abandon a: its worker is gone before it could take the job: drained by user/x"}},
		}},
		{"a cancelled job is nobody's", []step{
			{"", func(w *world) {
				w.queue("a", nil)
				w.job("a", must[job.Event](w.tb)(w.jobs["a"].RequestCancel("user/x", ""))...)
				w.register("local", 1, nil)
			}, nil},
			{"its worker is free for another", func(w *world) { w.queue("b", nil) }, []string{"schedule b at local"}},
			{"", func(w *world) {
				w.job("b", must[job.Event](w.tb)(w.jobs["b"].RequestCancel("user/x", ""))...)
				w.queue("c", nil)
				w.up("w1")
			}, []string{"assign c to w1"}},
		}},
		{"an unhealthy provider's idle worker is as good as any", []step{
			{"", func(w *world) {
				w.register("local", 2, reused)
				w.idle("x", "local", any)
				w.provider("local", provider.HealthChanged{From: provider.Healthy, To: provider.Unhealthy, Reason: "?"})
				w.queue("a", nil)
				w.queue("b", nil)
			}, []string{"assign a to x", "defer b: [provider local: unhealthy: ?]"}},
			{"", func(w *world) { w.finish("a", ok) }, []string{"assign b to x"}},
		}},
		{"a disconnected worker waits for its agent", []step{
			{"", func(w *world) {
				w.register("local", 1, reused)
				w.idle("x", "local", any)
				w.worker("x", worker.Disconnected{Epoch: 1})
				w.queue("a", nil)
			}, nil},
			{"", func(w *world) { w.worker("x", worker.Reconnected{Epoch: 2}) }, []string{"assign a to x"}},
		}},
	} {
		t.Run(test.name, test.tell)
	}
}

func TestHoldAndSettle(t *testing.T) {
	w := newWorld(t)
	w.register("local", 1, nil)
	w.queue("a", nil)
	w.queue("b", nil)
	first := w.s.Decide(w.now, 0)
	if len(first) != 1 || w.describe(first[0]) != "schedule a at local" {
		t.Fatalf("got %v", first)
	}
	if again := w.s.Decide(w.now, 0); len(again) != 0 {
		t.Fatalf("decided twice: %v", again)
	}
	// Somebody else was first: nothing became true, a is cancelled, the room is b's.
	w.job("a", must[job.Event](t)(w.jobs["a"].RequestCancel("user/x", ""))...)
	if more := w.s.Decide(w.now, 0); len(more) != 0 {
		t.Fatalf("the room is held, yet: %v", more)
	}
	w.s.Settle("a", time.Time{})
	if diff := cmp.Diff([]string{"schedule b at local"}, w.decide()); diff != "" {
		t.Fatal(diff)
	}
	if f := w.s.Figures(); f != (core.Figures{Queued: 1, Providers: 1}) {
		t.Errorf("figures: %+v", f)
	}
}

func TestSettleLater(t *testing.T) {
	w := newWorld(t)
	w.register("local", 1, nil)
	w.queue("a", nil)
	w.s.Decide(w.now, 0)
	w.s.Settle("a", w.now.Add(time.Second))
	if got := w.decide(); got != nil {
		t.Fatalf("too early: %v", got)
	}
	if due, ok := w.s.NextWake(); !ok || !due.Equal(t0.Add(time.Second)) {
		t.Fatalf("next wake %v %v", due, ok)
	}
	w.now = t0.Add(time.Second)
	if diff := cmp.Diff([]string{"schedule a at local"}, w.decide()); diff != "" {
		t.Fatal(diff)
	}
	if _, ok := w.s.NextWake(); ok {
		t.Error("still something to wake for")
	}
}

// A RUNNING that comes before the answer to our own append, and a job whose worker
// a snapshot does not know.
func TestOutOfStep(t *testing.T) {
	w := newWorld(t)
	w.register("local", 1, reused)
	w.idle("x", "local", job.Resources{})
	w.queue("a", nil)
	d := w.s.Decide(w.now, 0)[0].(core.Assign)
	j, x := w.jobs["a"], w.workers["x"]
	w.job("a", must[job.Event](t)(j.Assign("local", d.Worker, 1, ""))...)
	w.worker("x", must[worker.Event](t)(x.Take("a", 1))...)
	w.finish("a", job.Result{})
	w.s.ApplyJob("a", job.Assigned{WorkerID: "x"}, job.At{Version: 3}) // our answer, late
	w.s.Settle("a", time.Time{})
	if _, ok := w.s.Job("a"); ok {
		t.Error("a has ended and is still known")
	}
	w.queue("b", nil)
	if diff := cmp.Diff([]string{"assign b to x"}, w.decide()); diff != "" {
		t.Fatal(diff)
	}

	s := core.New()
	s.ObserveJob(job.Job{ID: "c", Version: 3, State: job.StateScheduled, WorkerID: "unknown", ProviderID: "p"})
	if got := s.Decide(t0, 0); len(got) != 1 || w.describe(got[0]) != "abandon c: the worker that was made for it is no more" {
		t.Fatalf("got %v", got)
	}
}
