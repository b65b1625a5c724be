// Package core decides how many workers a provider keeps ready: from the state
// that it is given, without a clock or a log.
package core

import (
	"time"

	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
)

// Idle tells whether a worker counts for min_idle: it is READY, or on its way there
// and no job waits for it.
func Idle(w worker.Worker) bool {
	switch w.State {
	case worker.StateReady:
		return true
	case worker.StateCreating, worker.StateConnecting:
		return w.WaitingJobID == ""
	default:
		return false
	}
}

// Missing is how many workers are to be made now so that min_idle of them are
// idle; live are the provider's workers that have not ended. A provider that is
// removed or unhealthy gets none, and none goes above max_workers.
func Missing(p provider.Provider, live []worker.Worker) int {
	if p.State != provider.StateEnabled || p.Health == provider.Unhealthy {
		return 0
	}
	idle := 0
	for _, w := range live {
		if Idle(w) {
			idle++
		}
	}
	return max(0, min(p.Spec.MinIdle-idle, p.Spec.MaxWorkers-len(live)))
}

// The pauses of a provider whose warm workers do not come up.
const (
	firstPause = time.Second
	maxPause   = time.Minute
)

// Pause is how long a provider is left alone after so many of its warm workers in
// a row have ended before they were READY.
func Pause(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(firstPause<<min(failures-1, 10), maxPause)
}
