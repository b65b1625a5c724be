package core

import "time"

// The bounds of Backoff.
const (
	backoffFirst = 250 * time.Millisecond
	backoffMost  = 30 * time.Second
)

// Backoff is how long a job is held back after its n-th loss to the platform
// (from 0): 250 ms doubled n times, at most 30 s. jitter, from 0 up to 1, spreads
// it over the upper half, so that what failed together does not return together.
func Backoff(n int, jitter float64) time.Duration {
	d := backoffMost
	if n < 0 {
		n = 0
	}
	if n < 10 {
		d = min(backoffFirst<<n, backoffMost)
	}
	return d/2 + time.Duration(jitter*float64(d/2))
}
