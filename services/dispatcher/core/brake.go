package core

import "time"

// The bounds of a Brake's pauses.
const (
	brakeFirst = 250 * time.Millisecond
	brakeMost  = 8 * time.Second
)

// Brake slows assignments down while no hand-over succeeds at all, as when the
// registry restarts: otherwise every idle worker, and all attempts that jobs may
// lose, would be spent within a second. Each failure after a pause makes the next
// pause four times as long; the first success ends it. The zero value does not brake.
type Brake struct {
	step  int
	until time.Time
}

// Accepted notes that a hand-over succeeded.
func (b *Brake) Accepted() { *b = Brake{} }

// Refused notes that a hand-over failed. Failures during a pause are of what was
// begun before it and count once.
func (b *Brake) Refused(now time.Time) {
	if now.Before(b.until) {
		return
	}
	b.until = now.Add(min(brakeFirst<<(2*min(b.step, 5)), brakeMost))
	b.step++
}

// Pause is how long nothing should be assigned from now on; 0 where it may.
func (b *Brake) Pause(now time.Time) time.Duration { return max(b.until.Sub(now), 0) }

// Probing tells whether only one hand-over at a time should be tried.
func (b *Brake) Probing() bool { return b.step > 0 }
