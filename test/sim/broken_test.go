package sim

import (
	"math/rand/v2"
	"testing"
)

// mutants break the glue in ways that the real system must never be broken in. kinds
// are the faults that bring it out soonest; nil = any.
var mutants = []struct {
	name   string
	broken breakage
	kinds  []string
}{
	{"registry requeues at WorkerLost, before the fence", breakage{requeuesUnfenced: true}, []string{pauseAgent, illProvider}},
	{"the dispatcher takes a refused or late hand-over for accepted", breakage{ignoresRefusals: true}, nil},
	{"the dispatcher takes a session that is gone for a refusal", breakage{goneRefuses: true}, []string{crash, crashAtPoint}},
	{"registry never looks whether a session should not be any more", breakage{noSessionCheck: true}, []string{lostCommand, illProvider}},
	{"the dispatcher does not hear what a probe of a path finds", breakage{forgetsProbes: true}, []string{lostReply, lostCommand}},
	// Whoever ends an attempt without its agent's word ends its worker in the same append, and
	// Terminate kills what the agent has: only where an acknowledgement was lost is the Drop all there is.
	{"registry leaves an agent that is back with an attempt that is over", breakage{neverDrops: true}, []string{crash, crashAtPoint}},
	{"a failed hand-over does not end its worker", breakage{keepsWorker: true}, nil},
	{"registry starts attempts that are stale", breakage{startsStale: true}, []string{lateStream, lostReply}},
	{"registry says START before the log says RUNNING", breakage{startsEarly: true}, nil},
	{"an agent starts without START", breakage{agentStartsAlone: true}, nil},
	{"a result does not release its worker", breakage{keepsBusy: true}, nil},
	{"an agent outlives its lease", breakage{outlivesLease: true}, []string{cutAgent}},
	{"a provider ends the agent and leaves what it ran", breakage{destroysAgentOnly: true}, nil},
	{"registry numbers sessions as their Hellos arrive", breakage{numbersByArrival: true}, []string{lateHello}},
	{"the provisioner confirms an end before it is one", breakage{confirmsFirst: true}, nil},
}

// mutantSeeds is within how many seeds each mutant must be found.
const mutantSeeds = 400

// TestFindsWhatIsBroken: a simulation that finds nothing must have something to find.
func TestFindsWhatIsBroken(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for s := uint64(1); s <= mutantSeeds; s++ {
				plan := planFor(s)
				if m.kinds != nil {
					plan = planOf(rand.New(rand.NewPCG(s, 4)), m.kinds)
				}
				if o := play(s, plan, m.broken); len(o.Wrong) > 0 {
					t.Logf("found by seed %d: %s", s, o.Wrong[0])
					return
				}
			}
			t.Errorf("not found within %d seeds", mutantSeeds)
		})
	}
}

// TestShrink: of all faults only those are left that it takes.
func TestShrink(t *testing.T) {
	o := play(2, planFor(2), breakage{agentStartsAlone: true})
	if len(o.Wrong) == 0 || len(o.Plan) == 0 {
		t.Fatalf("%d wrong, %d faults", len(o.Wrong), len(o.Plan))
	}
	if less := shrink(o, breakage{agentStartsAlone: true}); len(less.Plan) > 0 {
		t.Errorf("no fault is needed for that, and %d are left: %v", len(less.Plan), less.Plan)
	}
}
