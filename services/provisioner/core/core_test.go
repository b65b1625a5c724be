package core

import (
	"testing"
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

func TestMissing(t *testing.T) {
	t.Parallel()
	in := func(s worker.State) worker.Worker { return worker.Worker{State: s} }
	forJob := worker.Worker{State: worker.StateCreating, WaitingJobID: "j"}
	enabled := func(minIdle, maxWorkers int) provider.Provider {
		return provider.Provider{State: provider.StateEnabled, Health: provider.Healthy, Spec: provider.Spec{MinIdle: minIdle, MaxWorkers: maxWorkers}}
	}
	removed, ill := enabled(2, 4), enabled(2, 4)
	removed.State, ill.Health = provider.StateRemoved, provider.Unhealthy
	for name, c := range map[string]struct {
		p    provider.Provider
		live []worker.Worker
		want int
	}{
		"none wanted":                 {enabled(0, 4), nil, 0},
		"all missing":                 {enabled(2, 4), nil, 2},
		"one is ready":                {enabled(2, 4), []worker.Worker{in(worker.StateReady)}, 1},
		"on the way counts":           {enabled(2, 4), []worker.Worker{in(worker.StateCreating), in(worker.StateConnecting)}, 0},
		"a job waits for it":          {enabled(2, 4), []worker.Worker{forJob}, 2},
		"busy does not count":         {enabled(2, 4), []worker.Worker{in(worker.StateBusy), in(worker.StateTerminating)}, 2},
		"never above the most":        {enabled(2, 4), []worker.Worker{in(worker.StateBusy), in(worker.StateBusy), in(worker.StateBusy)}, 1},
		"full":                        {enabled(2, 2), []worker.Worker{in(worker.StateBusy), in(worker.StateTerminating)}, 0},
		"more than wanted stay":       {enabled(1, 4), []worker.Worker{in(worker.StateReady), in(worker.StateReady)}, 0},
		"a removed provider has none": {removed, nil, 0},
		"an unhealthy one has none":   {ill, nil, 0},
	} {
		if got := Missing(c.p, c.live); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{0: 0, 1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 7: time.Minute, 1000: time.Minute} {
		if got := Pause(failures); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
	}
}
