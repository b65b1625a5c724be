// Package uptime is the clock that leases are judged by: it goes on while the
// machine is suspended, and nobody sets it. Go's monotonic clock stands still
// meanwhile: an agent that slept for an hour would believe that it still has its
// lease.
package uptime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine started, suspension included. It is comparable
// between the processes of one machine.
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("there is no CLOCK_MONOTONIC: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
