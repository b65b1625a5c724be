package uptime

import "time"

// Clock returns a clock of this process: the wall clock of when it was made, moved
// on by [Now]. Its times have no monotonic reading, so that what is compared is what
// it says.
func Clock() func() time.Time {
	wall, start := time.Now().Round(0), Now()
	return func() time.Time { return wall.Add(Now() - start) }
}
