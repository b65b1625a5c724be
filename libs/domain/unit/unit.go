// Package unit holds quantities whose JSON form people read: durations are
// Go-style strings ("1h30m"), not nanoseconds.
package unit

import (
	"fmt"
	"time"
)

// Duration is a time.Duration that is written as text, such as "30s".
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String is the Go form, such as "1m30s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the Go form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the Go form.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: write it like 30s, 5m or 1h30m", text)
	}
	*d = Duration(v)
	return nil
}
