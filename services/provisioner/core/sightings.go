package core

import (
	"time"

	"hodei.dev/libs/domain/worker"
)

// SightingApart is how long a mismatch of log and provider must last before it is
// repaired: two looks that far apart rule out what was just about to change.
const SightingApart = 5 * time.Second

// Sightings are the mismatches that one look found, by what and worker, with the time
// of the first look that did.
type Sightings map[string]time.Time

// Confirmed notes a mismatch in seen, which is what this look finds, and tells whether
// it was seen before (s is what the look before found), long enough ago.
func (s Sightings) Confirmed(seen Sightings, key string, now time.Time) bool {
	first, ok := s[key]
	if !ok {
		first = now
	}
	seen[key] = first
	return ok && now.Sub(first) >= SightingApart
}

// Zombie tells whether a resource has no live worker; w is its worker by the log, the
// zero Worker where the log has none.
func Zombie(w worker.Worker) bool { return w.Version == 0 || w.State.Terminal() }

// Ghost tells whether a worker should have a resource. One that is TERMINATING may have
// none any more.
func Ghost(w worker.Worker) bool { return w.Provisioned && !going(w) }
