package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// mishap is one fault: one thing that goes wrong.
type mishap struct {
	// at is when it begins, from the beginning of the plan; lasts how long it is there.
	at, lasts time.Duration
	// what names its sort.
	what string
	// dice decides what only the running system can tell, such as which of the agents.
	dice uint64
	// target is the instance, the node or the link; empty where the sort has but one.
	target string
}

func (f mishap) String() string {
	s := f.what
	if f.target != "" {
		s += " " + f.target
	}
	if f.lasts > 0 {
		s += " for " + f.lasts.Round(10*time.Millisecond).String()
	}
	return s
}

// plan is what a seed means: the platform, and everything that goes wrong with it.
type plan struct {
	seed    uint64
	lasts   time.Duration
	options options
	faults  []mishap
}

// newPlan derives a plan from its seed; the same seed and length always give the same plan.
func newPlan(seed uint64, lasts time.Duration, nodes int) plan {
	r := rand.New(rand.NewPCG(seed, uint64(nodes)))
	p := plan{seed: seed, lasts: lasts, options: options{
		nodes: nodes, replicated: r.IntN(2) == 0, workers: 16, jobsPerWorker: []int{1, 1, 3, 0}[r.IntN(4)], minIdle: []int{0, 2}[r.IntN(2)],
	}}
	world := &platform{options: p.options}
	longest := min(time.Minute, lasts/3)
	// Every sort occurs in every long plan, in an order of the seed's; then by weight.
	order := r.Perm(len(sorts))
	for at := 2 * time.Second; at < lasts; {
		var s sort
		if len(order) > 0 {
			s, order = sorts[order[0]], order[1:]
		} else {
			s = weighted(r)
		}
		at += time.Duration(r.ExpFloat64() * float64(meanGap))
		if s.cluster && nodes == 1 || at >= lasts {
			continue
		}
		f := mishap{at: at, what: s.name, dice: r.Uint64()}
		if s.targets != nil {
			all := s.targets(world)
			f.target = all[r.IntN(len(all))]
		}
		if s.lasts[1] > 0 {
			f.lasts = min(between(r, s.lasts), longest)
		}
		p.faults = append(p.faults, f)
	}
	slices.SortStableFunc(p.faults, func(a, b mishap) int { return int(a.at - b.at) })
	return p
}

// meanGap is the mean time between the beginnings of two faults.
const meanGap = 2 * time.Second

func weighted(r *rand.Rand) sort {
	sum := 0
	for _, s := range sorts {
		sum += s.weight
	}
	n := r.IntN(sum)
	for _, s := range sorts {
		if n -= s.weight; n < 0 {
			return s
		}
	}
	return sorts[0]
}

func (p plan) String() string {
	o := p.options
	replicas := "one replica of each service"
	if o.replicated {
		replicas = "two replicas of each service"
	}
	return fmt.Sprintf("%s, %d NATS node(s), jobs per worker %d, %d kept idle, %d faults in %s", replicas, o.nodes, o.jobsPerWorker, o.minIdle, len(p.faults), p.lasts)
}
