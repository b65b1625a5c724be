package job

import (
	"math"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/unit"
)

// Limits and defaults of a retry policy.
const (
	// DefaultMaxAttempts is how many attempts the job's own command may end.
	DefaultMaxAttempts = 1
	// DefaultInfrastructureAttempts is how many attempts may be lost to infrastructure and made up for.
	DefaultInfrastructureAttempts = 3
	// MaxRetryAttempts bounds both budgets.
	MaxRetryAttempts = 100
	// DefaultInitialBackoff, DefaultBackoffFactor, DefaultMaxBackoff and DefaultJitter
	// are the default [Backoff]: 1 s, 2 s, 4 s up to 1 min, each up to half shorter.
	DefaultInitialBackoff = time.Second
	DefaultBackoffFactor  = 2.0
	DefaultMaxBackoff     = time.Minute
	DefaultJitter         = 0.5
	// MaxBackoffFactor and MaxBackoff bound what a policy may ask for.
	MaxBackoffFactor = 10.0
	MaxBackoff       = 24 * time.Hour
)

// Retry is a job's retry policy: how often it may be attempted, which failures are
// worth another attempt, and how long that waits (R1.2a). A failed attempt is made
// up for when On has its category and the budget of its kind has attempts left.
type Retry struct {
	// MaxAttempts counts attempts that the job's own command ended; default 1.
	MaxAttempts int `json:"max_attempts"`
	// InfrastructureAttempts may be lost to the platform and are made up for; default 3.
	// 0 is for commands that must never start twice.
	InfrastructureAttempts int `json:"infrastructure_attempts"`
	// On are the categories that are retried, in the order of [Causes]. Of each kind
	// (own, infrastructure) that has a budget and none of whose categories is named, it
	// has those that are retried by default. A job queued before policies had this field
	// has nil, which is every category that may be retried.
	On []Category `json:"on,omitempty"`
	// Backoff is the wait before the next attempt; zero = the default.
	Backoff Backoff `json:"backoff,omitzero"`
}

// Backoff is a wait that grows with each failure.
type Backoff struct {
	// Initial is the first wait; default 1 s.
	Initial unit.Duration `json:"initial"`
	// Factor, 1 to 10, multiplies the wait each time; default 2.
	Factor float64 `json:"factor"`
	// Max is the longest wait; default 1 min, or Initial where that is longer.
	Max unit.Duration `json:"max"`
	// Jitter, 0 to 1, is how much of each wait chance may take off, so that what failed
	// together does not return together. 0 is none; that of the zero Backoff is 0.5.
	Jitter float64 `json:"jitter"`
}

// DefaultBackoff returns the default.
func DefaultBackoff() Backoff {
	return Backoff{Initial: unit.Duration(DefaultInitialBackoff), Factor: DefaultBackoffFactor, Max: unit.Duration(DefaultMaxBackoff), Jitter: DefaultJitter}
}

// Delay is the wait after the n-th failure in a row, from 1. chance, from 0 up to 1,
// is how much of the jitter it takes off: the wait is within (1 - Jitter) * d and d,
// where d is the least of Initial * Factor^(n-1) and Max.
func (b Backoff) Delay(n int, chance float64) time.Duration {
	d, most := float64(b.Initial)*math.Pow(b.Factor, float64(max(n, 1)-1)), float64(b.Max)
	if !(d < most) { // infinite, or not a number, too
		d = most
	}
	return time.Duration(d * (1 - b.Jitter*min(max(chance, 0), 1)))
}

// Retries tells whether a failure of this category is made up for while its budget lasts.
func (r Retry) Retries(c Category) bool {
	k := CauseOf(c)
	switch {
	case k.Retried == Never:
		return false
	case r.On == nil:
		return true
	case k.Code == codeUnknown:
		c = CategoryInfrastructure // a newer agent's word
	}
	return slices.Contains(r.On, c)
}

// Delay is how long a job is held back whose ended-th attempt has just ended.
func (r Retry) Delay(ended int, chance float64) time.Duration {
	return r.Backoff.withDefaults().Delay(ended, chance)
}

// Equal tells whether both policies, taken with their defaults, are the same.
func (r Retry) Equal(other Retry) bool {
	r, other = r.withDefaults(), other.withDefaults()
	return r.MaxAttempts == other.MaxAttempts && r.InfrastructureAttempts == other.InfrastructureAttempts &&
		slices.Equal(r.On, other.On) && r.Backoff == other.Backoff
}

// budget tells whether attempts of a kind may be made up for at all.
func (r Retry) budget(infrastructure bool) bool {
	if infrastructure {
		return r.InfrastructureAttempts > 0
	}
	return r.MaxAttempts > 1
}

func (r Retry) withDefaults() Retry {
	if r.MaxAttempts == 0 {
		r.MaxAttempts = DefaultMaxAttempts
	}
	own := slices.ContainsFunc(r.On, func(c Category) bool { return !CauseOf(c).Infrastructure })
	infrastructure := slices.ContainsFunc(r.On, func(c Category) bool { return CauseOf(c).Infrastructure })
	r.On = r.list(func(k Cause) bool {
		named := k.Infrastructure && infrastructure || !k.Infrastructure && own
		return slices.Contains(r.On, k.Category) || k.Retried == ByDefault && !named && r.budget(k.Infrastructure)
	})
	r.Backoff = r.Backoff.withDefaults()
	return r
}

// Explicit spells out what a policy means that was queued before it could say so; any
// other it returns as it is.
func (r Retry) Explicit() Retry {
	if r.On == nil {
		r.On = r.list(func(k Cause) bool { return k.Retried != Never && r.budget(k.Infrastructure) })
	}
	r.Backoff = r.Backoff.withDefaults()
	return r
}

// list is the categories that are wanted, each once and in the order of Causes, and
// behind them what of On is no category, for Validate to refuse. nil where there is none.
func (r Retry) list(want func(Cause) bool) []Category {
	var out []Category
	for _, k := range Causes {
		if want(k) {
			out = append(out, k.Category)
		}
	}
	for _, c := range r.On {
		if CauseOf(c).Code == codeUnknown {
			out = append(out, c)
		}
	}
	return out
}

func (b Backoff) withDefaults() Backoff {
	if b == (Backoff{}) {
		return DefaultBackoff()
	}
	if b.Initial == 0 {
		b.Initial = unit.Duration(DefaultInitialBackoff)
	}
	if b.Factor == 0 {
		b.Factor = DefaultBackoffFactor
	}
	if b.Max == 0 {
		b.Max = max(unit.Duration(DefaultMaxBackoff), b.Initial)
	}
	return b
}

// validate adds what is wrong with a policy that has its defaults.
func (r Retry) validate(f *fault.Fields) {
	if r.MaxAttempts < 1 || r.MaxAttempts > MaxRetryAttempts {
		f.Add("retry.max_attempts", "%d: from 1 to %d", r.MaxAttempts, MaxRetryAttempts)
	}
	if r.InfrastructureAttempts < 0 || r.InfrastructureAttempts > MaxRetryAttempts {
		f.Add("retry.infrastructure_attempts", "%d: from 0 to %d", r.InfrastructureAttempts, MaxRetryAttempts)
	}
	for _, c := range r.On {
		switch k := CauseOf(c); {
		case k.Code == codeUnknown:
			f.Add("retry.on", "%q is no category of failures: one of %s", clip(string(c)), retryable())
		case k.Retried == Never:
			f.Add("retry.on", "%s is never retried: one of %s", c, retryable())
		case !k.Infrastructure && r.MaxAttempts == 1:
			f.Add("retry.on", "%s is not retried with max_attempts 1: allow 2 or more", c)
		case k.Infrastructure && r.InfrastructureAttempts == 0:
			f.Add("retry.on", "%s is not retried with infrastructure_attempts 0: allow 1 or more", c)
		}
	}
	r.Backoff.validate(f)
}

func (b Backoff) validate(f *fault.Fields) {
	if b.Initial <= 0 || b.Initial.D() > MaxBackoff {
		f.Add("retry.backoff.initial", "%s: more than 0 and at most %s", b.Initial, MaxBackoff)
	}
	if !(b.Factor >= 1 && b.Factor <= MaxBackoffFactor) {
		f.Add("retry.backoff.factor", "%v: from 1 to %v", b.Factor, MaxBackoffFactor)
	}
	if b.Max < b.Initial || b.Max.D() > MaxBackoff {
		f.Add("retry.backoff.max", "%s: at least retry.backoff.initial, which is %s, and at most %s", b.Max, b.Initial, MaxBackoff)
	}
	if !(b.Jitter >= 0 && b.Jitter <= 1) {
		f.Add("retry.backoff.jitter", "%v: from 0 to 1", b.Jitter)
	}
}

// retryable names the categories that a policy may name.
func retryable() string {
	var names []string
	for _, k := range Causes {
		if k.Retried != Never {
			names = append(names, string(k.Category))
		}
	}
	return strings.Join(names, ", ")
}
