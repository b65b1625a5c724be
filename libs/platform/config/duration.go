package config

import (
	"fmt"
	"math"
	"time"
)

// Duration is a length of time, written Go style: "250ms", "30s", "1h30m". A field
// that may be unlimited also takes "none". Negative values are refused when read;
// whether zero makes sense is the owner's to say in Validate.
type Duration time.Duration

// None is "without a limit". As a timer it is 292 years; do not add to it.
const None Duration = math.MaxInt64

// Std returns the duration as the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// IsNone reports whether there is no limit.
func (d Duration) IsNone() bool { return d == None }

// String is the text that UnmarshalText reads.
func (d Duration) String() string {
	if d == None {
		return "none"
	}
	return time.Duration(d).String()
}

// MarshalText writes the duration Go style, or "none".
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a Go duration or "none"; it refuses a negative one and a
// number without a unit.
func (d *Duration) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*d = None
		return nil
	}
	std, err := time.ParseDuration(string(text))
	switch {
	case err != nil:
		return fmt.Errorf("%q has not the form 30s, 5m or 1h30m", text)
	case std < 0:
		return fmt.Errorf("%q is negative", text)
	}
	*d = Duration(std)
	return nil
}
