package sim

import (
	"flag"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("seed", 0, "run this seed only")
	seeds = flag.Int("seeds", usual, "how many seeds to run")
	base  = flag.Uint64("base", 0, "the first seed; 0 = half of them from 1, half from a random one")
)

// TestSim plays seeds. One that fails is shrunk and tells its story.
func TestSim(t *testing.T) {
	if *seed != 0 {
		fails(t, *seed, nil)
		return
	}
	began, first := time.Now(), *base
	if first == 0 {
		first = rand.Uint64N(1 << 40)
		t.Logf("from 1, and from the random base %d", first)
	}
	sum := &sum{}
	for i := range *seeds {
		s := first + uint64(i)
		if *base == 0 && i < *seeds/2 {
			s = uint64(i + 1)
		}
		if fails(t, s, sum) {
			break
		}
	}
	slices.Sort(sum.waits)
	t.Logf("%d seeds, %.0f a minute: %d jobs, %d attempts, %d events, %d faults; sweeps found %d zombies and %d ghosts; circuits opened: %d of paths, %d of providers", *seeds,
		float64(*seeds)/time.Since(began).Minutes(), sum.jobs, sum.attempts, sum.events, sum.faults, sum.zombies, sum.ghosts, sum.paths, sum.providers)
	if n := len(sum.waits); n > 0 {
		t.Logf("where only services restarted, an attempt waited for its start, or for the record of its end: p50 %s, p99 %s, at most %s (of %d)",
			sum.waits[n/2].Round(time.Millisecond), sum.waits[n*99/100].Round(time.Millisecond), sum.waits[n-1].Round(time.Millisecond), n)
	}
}

type sum struct {
	jobs, attempts, events, faults, zombies, ghosts, paths, providers int
	waits                                                             []time.Duration
}

func fails(t *testing.T, seed uint64, into *sum) bool {
	t.Helper()
	o := Run(seed)
	if into != nil {
		into.jobs, into.attempts, into.events, into.faults = into.jobs+o.Jobs, into.attempts+o.Attempts, into.events+o.Events, into.faults+len(o.Plan)
		into.paths, into.providers = into.paths+o.Paths, into.providers+o.Providers
		into.zombies, into.ghosts, into.waits = into.zombies+o.Zombies, into.ghosts+o.Ghosts, append(into.waits, o.Waits...)
	}
	if len(o.Wrong) == 0 {
		return false
	}
	t.Errorf("%s", Shrink(o))
	return true
}

// TestSeedDecidesAll: a seed gives the same events each time, else no failure could be
// looked into.
func TestSeedDecidesAll(t *testing.T) {
	for s := uint64(1); s <= 6; s++ {
		first, again := newWorld(s, planFor(s), breakage{}), newWorld(s, planFor(s), breakage{})
		first.run()
		again.run()
		if len(first.log.events) != len(again.log.events) {
			t.Fatalf("seed %d: %d events, then %d", s, len(first.log.events), len(again.log.events))
		}
		for i, f := range first.log.events {
			if g := again.log.events[i]; f.ID != g.ID || f.Type != g.Type || !f.Time.Equal(g.Time) || string(f.Data) != string(g.Data) {
				t.Fatalf("seed %d: event %d is %s at %s, then %s at %s", s, i+1, f.Type, f.Time, g.Type, g.Time)
			}
		}
	}
}
