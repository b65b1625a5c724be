package consumer_test

import (
	"math"
	"slices"
	"testing"

	"hodei.dev/libs/domain/consumer"
)

// One alert a crossing, not one a letter; and again after it fell below.
func TestOneAlertACrossing(t *testing.T) {
	const raised, cleared = "DeadLetterAlertRaised", "DeadLetterAlertCleared"
	c := consumer.Consumer{Service: "audit", Name: "audit"}
	for _, step := range []struct {
		open, threshold int64
		want            []string
	}{
		{0, 3, nil},
		{2, 3, nil},
		{3, 3, []string{raised}},
		{4, 3, nil},
		{400, 3, nil},
		{3, 3, nil},
		{2, 3, []string{cleared}},
		{0, 3, nil},
		{7, 3, []string{raised}},
		{7, math.MaxInt64, []string{cleared}}, // nobody wants it any more
		{7, 8, nil},
	} {
		var got []string
		for _, e := range c.Warn(step.open, step.threshold) {
			c = c.Evolve(e, c.Version+1)
			got = append(got, e.EventType())
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("%d open of %d: got %v, want %v", step.open, step.threshold, got, step.want)
		}
	}
}
