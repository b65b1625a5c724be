package core_test

import (
	"errors"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/provisioner/core"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestNext(t *testing.T) {
	enabled, removed := provider.Provider{State: provider.StateEnabled}, provider.Provider{State: provider.StateRemoved}
	known, lease := core.Keeper{Known: true}, core.Keeper{Known: true, LeaseFence: true}
	made := func(s worker.State) worker.Worker { return worker.Worker{State: s, Provisioned: true} }
	for _, c := range []struct {
		name string
		w    worker.Worker
		p    provider.Provider
		f    core.Fate
		k    core.Keeper
		gone string
		want core.Step
	}{
		{"a new worker is made", worker.Worker{State: worker.StateCreating}, enabled, core.Fate{}, known, "", core.Provide},
		{"nobody here can make it", worker.Worker{State: worker.StateCreating}, enabled, core.Fate{}, core.Keeper{}, "", core.GiveUp},
		{"it is there", made(worker.StateBusy), enabled, core.Fate{}, known, "", core.Rest},
		{"its resource has ended by itself", made(worker.StateBusy), enabled, core.Fate{}, known, "exited", core.End},
		{"it is told to go", made(worker.StateTerminating), enabled, core.Fate{}, known, "", core.End},
		{"it was told to go before it was made", worker.Worker{State: worker.StateTerminating}, enabled, core.Fate{}, known, "", core.End},
		{"a goodbye is proof where there is no other", made(worker.StateReady), enabled, core.Fate{Goodbye: true}, lease, "", core.End},
		{"a goodbye is none where the provider knows", made(worker.StateReady), enabled, core.Fate{Goodbye: true}, known, "", core.Rest},
		{"its provider is removed", made(worker.StateBusy), removed, core.Fate{}, known, "", core.Drain},
		{"it drains already", made(worker.StateDraining), removed, core.Fate{}, known, "", core.Rest},
		{"it is no more", made(worker.StateTerminated), enabled, core.Fate{}, known, "exited", core.Clear},
	} {
		if got, _ := core.Next(c.w, c.p, c.f, c.k, c.gone); got != c.want {
			t.Errorf("%s: step %d, want %d", c.name, got, c.want)
		}
	}
}

func TestFate(t *testing.T) {
	var f core.Fate
	f.Follow(worker.Registered{}, now)
	f.Follow(worker.Disconnected{Clean: true}, now)
	if !f.Registered || !f.Goodbye {
		t.Errorf("%+v", f)
	}
	f.Follow(worker.Reconnected{}, now)
	f.Follow(worker.StatusChanged{To: worker.StateTerminating}, now)
	if f.Goodbye || !f.Condemned.Equal(now) {
		t.Errorf("%+v", f)
	}
}

// A worker that is not wanted any more gets no resource, no second end, no step back.
func TestTooLate(t *testing.T) {
	for _, s := range []worker.State{worker.StateTerminating, worker.StateTerminated} {
		w := worker.Worker{State: s}
		if facts, err := core.Provided(w, "r", nil); len(facts) > 0 || err != nil {
			t.Errorf("%s: provided %v, %v", s, facts, err)
		}
		if facts, err := core.GivenUp(w, errors.New("no")); len(facts) > 0 || err != nil {
			t.Errorf("%s: given up %v, %v", s, facts, err)
		}
		if facts, err := core.Drained(w, "user/ann"); len(facts) > 0 || err != nil {
			t.Errorf("%s: drained %v, %v", s, facts, err)
		}
	}
	if facts, err := core.Ended(worker.Worker{State: worker.StateTerminated}, ""); len(facts) > 0 || err != nil {
		t.Errorf("ended twice: %v, %v", facts, err)
	}
	if facts, err := core.Ended(worker.Worker{State: worker.StateBusy}, "its process has exited"); err != nil || facts[0].(worker.Terminated).Reason != "its process has exited" {
		t.Errorf("%v, %v", facts, err)
	}
}

func TestAgain(t *testing.T) {
	if core.Again(1, fault.New(fault.Invalid, "no such image")) || !core.Again(1, errors.New("busy")) || core.Again(core.MakeAttempts, errors.New("busy")) {
		t.Error("a lasting error is tried again, or a passing one is not, or for ever")
	}
}

func TestSightings(t *testing.T) {
	first, second := core.Sightings{}, core.Sightings{}
	if core.Sightings(nil).Confirmed(first, "zombie w", now) {
		t.Error("confirmed at first sight")
	}
	if first.Confirmed(second, "zombie w", now.Add(core.SightingApart-time.Second)) {
		t.Error("confirmed too soon")
	}
	if !second.Confirmed(core.Sightings{}, "zombie w", now.Add(core.SightingApart)) {
		t.Error("not confirmed although it lasts")
	}
	if !core.Zombie(worker.Worker{}) || core.Zombie(worker.Worker{Version: 1, State: worker.StateTerminating}) || core.Ghost(worker.Worker{Provisioned: true, State: worker.StateTerminating}) {
		t.Error("what goes is neither zombie nor ghost; what the log does not know is a zombie")
	}
}
