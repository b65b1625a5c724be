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

func prefers(provider string) func(*job.Spec) {
	return func(s *job.Spec) { s.Placement.PreferredProvider = provider }
}

// TestPrefer: a preference is kept while it can be, and never keeps a job waiting.
func TestPrefer(t *testing.T) {
	var any job.Resources
	ok := job.Result{}
	for _, test := range []story{
		{"a preferred provider", []step{
			{"room where it prefers to be before an idle worker elsewhere", func(w *world) {
				w.register("big", 9, reused)
				w.register("small", 1, reused)
				w.idle("x", "big", any)
				w.queue("a", prefers("small"))
			}, []string{"schedule a at small"}},
			{"it waits there while x is idle", func(*world) {}, nil},
			{"no room there: x", func(w *world) { w.queue("b", prefers("small")) }, []string{"assign b to x"}},
			{"its own worker", func(w *world) { w.up("w1") }, []string{"assign a to w1"}},
			{"neither: a new worker elsewhere", func(w *world) { w.queue("c", prefers("small")) }, []string{"schedule c at big"}},
			{"a worker of the preferred one is free first", func(w *world) { w.finish("a", ok) }, []string{"assign c to w1"}},
			{"an idle worker there before one that is idle longer", func(w *world) {
				w.finish("b", ok)
				w.finish("c", ok)
				w.queue("d", prefers("small"))
			}, []string{"assign d to w1"}},
		}},
		{"a preference gives way to what has to be", []step{
			{"labels, resources, the one that is named, and a provider that is not there", func(w *world) {
				w.register("a", 9, func(s *provider.Spec) { labelled("zone", "a")(s); s.CPUMillis = 1000 })
				w.register("b", 3, labelled("zone", "b"))
				w.queue("labels", func(s *job.Spec) { prefers("a")(s); requires("zone", "b")(s) })
				w.queue("cpu", func(s *job.Spec) { prefers("a")(s); cpu(2000)(s) })
				w.queue("named", func(s *job.Spec) { prefers("a")(s); at("b")(s) })
				w.queue("gone", prefers("mars"))
			}, []string{"schedule labels at b", "schedule cpu at b", "schedule named at b", "schedule gone at a"}},
			{"an unhealthy one", func(w *world) {
				w.register("c", 1, nil)
				w.provider("a", provider.HealthChanged{From: provider.Healthy, To: provider.Unhealthy, Reason: "?"})
				w.queue("ill", prefers("a"))
			}, []string{"schedule ill at c"}},
			{"a removed one", func(w *world) {
				w.register("d", 1, nil)
				w.provider("a", provider.Removed{By: "test"})
				w.queue("removed", prefers("a"))
			}, []string{"schedule removed at d"}},
		}},
		{"who waits at home holds nobody of its shape back", []step{
			{"one at home, one elsewhere", func(w *world) {
				w.register("home", 1, nil)
				w.register("other", 3, reused)
				w.queue("a", prefers("home"))
				w.queue("b", prefers("home"))
			}, []string{"schedule a at home", "schedule b at other"}},
			{"an idle worker elsewhere is b's alone", func(w *world) { w.idle("x", "other", any) }, []string{"assign b to x"}},
			{"home's worker never comes, and home is gone", func(w *world) {
				w.provider("home", provider.Removed{By: "test"})
				w.worker("w1", must[worker.Event](w.tb)(w.workers["w1"].Terminate(worker.CauseProvisioning, "no disk"))...)
			}, []string{"abandon a: its worker is gone before it could take the job: no disk"}},
			{"then any other", func(w *world) { w.now = w.now.Add(time.Minute); w.up("w2") }, []string{"assign a to w2"}},
		}},
		{"who waits at home holds nobody back who waits at another", []step{
			{"both at home", func(w *world) {
				w.register("p", 1, nil)
				w.register("q", 2, nil)
				w.queue("a", prefers("p"))
				w.queue("b", prefers("q"))
			}, []string{"schedule a at p", "schedule b at q"}},
			{"an idle worker at q", func(w *world) { w.idle("x", "q", any) }, []string{"assign b to x"}},
		}},
	} {
		t.Run(test.name, test.tell)
	}
}

// TestChoiceInWords: what JobScheduled, JobAssigned and ProviderSelected say of a choice.
func TestChoiceInWords(t *testing.T) {
	w := newWorld(t)
	w.register("a", 1, labelled("zone", "a"))
	w.register("b", 3, labelled("zone", "b"))
	w.register("c", 2, labelled("zone", "b"))
	type choice struct {
		reason     string
		candidates []string
	}
	decided := func() choice {
		t.Helper()
		ds := w.s.Decide(w.now, 0)
		if len(ds) != 1 {
			t.Fatalf("got %v", ds)
		}
		w.execute(ds[0])
		switch d := ds[0].(type) {
		case core.Assign:
			return choice{reason: d.Reason}
		case core.Schedule:
			c := choice{reason: d.Reason}
			for _, p := range d.Candidates {
				c.candidates = append(c.candidates, p.ProviderName+": "+p.Reason)
			}
			return c
		}
		t.Fatalf("got %v", ds)
		return choice{}
	}
	for i, test := range []struct {
		change func(*job.Spec)
		want   choice
	}{
		{prefers("a"), choice{"preferred, and has room: 0 of 1 workers exist", []string{
			"a: preferred, and has room: 0 of 1 workers exist", "b: fits, but the job prefers a", "c: fits, but the job prefers a",
		}}},
		{prefers("a"), choice{"the most room: 0 of 3 workers exist; preferred provider a: all of its 1 workers exist", []string{
			"a: all of its 1 workers exist", "b: the most room: 0 of 3 workers exist; preferred provider a: all of its 1 workers exist",
			"c: fits, but no more room than b: 0 of 2 workers exist",
		}}},
		{func(s *job.Spec) { prefers("a")(s); requires("zone", "b")(s) }, choice{`the most room: 1 of 3 workers exist; preferred provider a: label zone is "a" and not "b"`, []string{
			`a: label zone is "a" and not "b"`, `b: the most room: 1 of 3 workers exist; preferred provider a: label zone is "a" and not "b"`,
			"c: fits, but no more room than b: 0 of 2 workers exist",
		}}},
		{prefers("mars"), choice{`the most room: 0 of 2 workers exist; there is no preferred provider "mars"`, []string{
			"a: all of its 1 workers exist", "b: fits, but no more room than c: 2 of 3 workers exist",
			`c: the most room: 0 of 2 workers exist; there is no preferred provider "mars"`,
		}}},
	} {
		w.queue(string(rune('p'+i)), test.change)
		if diff := cmp.Diff(test.want, decided(), cmp.AllowUnexported(choice{})); diff != "" {
			t.Fatalf("choice %d (-want +got):\n%s", i+1, diff)
		}
	}
	w.idle("x", "b", job.Resources{})
	w.queue("last", func(s *job.Spec) { prefers("a")(s); s.Priority = 1 })
	if got := decided().reason; got != "an idle worker of provider b fits; preferred provider a: all of its 1 workers exist" {
		t.Errorf("got %q", got)
	}
}
