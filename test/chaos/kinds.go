package main

import (
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// plenty is a budget for attempts lost to infrastructure that no plan uses up: what
// has it ends as its own command does.
const plenty = 100

// kind is one sort of job of the load.
type kind struct {
	name   string
	weight int
	// run is what its task does; nil where it runs a program of its own.
	run func(*run)
	// lasts is how long, from one to the other.
	lasts [2]time.Duration
	// spec adds to the job.
	spec func(*schedulerv1.JobSpec)
	// cancelled within this time after it was queued; 0 = never.
	cancelled time.Duration
	// ends are the states it may end in, whatever faults there were.
	ends []string
	// atMostOnce jobs must never start twice.
	atMostOnce bool
}

func succeeds() []string { return []string{"SUCCEEDED"} }

// kinds are the load.
var kinds = []kind{
	{name: "quick", weight: 30, run: lasting, ends: succeeds()},
	{name: "steady", weight: 25, run: lasting, lasts: [2]time.Duration{500 * time.Millisecond, 4 * time.Second}, ends: succeeds()},
	{name: "long", weight: 6, run: lasting, lasts: [2]time.Duration{8 * time.Second, 15 * time.Second}, ends: succeeds()},
	{name: "failing", weight: 8, run: failing, ends: []string{"FAILED"}},
	{name: "flaky", weight: 6, run: flaky, ends: succeeds(), spec: func(s *schedulerv1.JobSpec) { s.Retry.MaxAttempts = 3 }},
	{name: "slow", weight: 4, run: lasting, lasts: [2]time.Duration{10 * time.Minute, 10 * time.Minute}, ends: []string{"TIMEOUT"}, spec: func(s *schedulerv1.JobSpec) { s.Timeout = "2s" }},
	{name: "deaf", weight: 1, run: deaf, lasts: [2]time.Duration{10 * time.Minute, 10 * time.Minute}, ends: []string{"TIMEOUT"}, spec: func(s *schedulerv1.JobSpec) { s.Timeout = "1s" }},
	{name: "unwanted", weight: 7, run: lasting, lasts: [2]time.Duration{10 * time.Minute, 10 * time.Minute}, cancelled: 6 * time.Second, ends: []string{"CANCELLED"}},
	{name: "daemon", weight: 4, run: daemon, lasts: [2]time.Duration{200 * time.Millisecond, time.Second}, ends: succeeds()},
	{name: "chatty", weight: 3, run: chatty, ends: succeeds()},
	{name: "once", weight: 6, run: lasting, lasts: [2]time.Duration{time.Second, 5 * time.Second}, atMostOnce: true, ends: []string{"SUCCEEDED", "FAILED"}, spec: func(s *schedulerv1.JobSpec) { s.Retry.InfrastructureAttempts = proto.Int32(0) }},
}

func kindNamed(name string) kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	return kind{}
}

// pick takes a kind by weight.
func pick(r *rand.Rand) kind {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	n := r.IntN(sum)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	return kinds[0]
}

// between is a duration of the range.
func between(r *rand.Rand, d [2]time.Duration) time.Duration {
	if d[1] <= d[0] {
		return d[0]
	}
	return d[0] + time.Duration(r.Int64N(int64(d[1]-d[0])))
}
