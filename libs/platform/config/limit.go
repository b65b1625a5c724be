package config

import (
	"fmt"
	"math"
	"strconv"
)

// Limit is how many there may be: a whole number, or "none". Negative values are
// refused when read; whether zero makes sense is the owner's to say in Validate.
type Limit int64

// Unlimited is "none".
const Unlimited Limit = math.MaxInt64

// String is the text that UnmarshalText reads.
func (l Limit) String() string {
	if l == Unlimited {
		return "none"
	}
	return strconv.FormatInt(int64(l), 10)
}

// MarshalText writes the number, or "none".
func (l Limit) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a whole number or "none"; it refuses a negative one.
func (l *Limit) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*l = Unlimited
		return nil
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is neither a whole number of zero or more nor none", text)
	}
	*l = Limit(n)
	return nil
}
