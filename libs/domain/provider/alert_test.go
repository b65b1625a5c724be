package provider_test

import (
	"reflect"
	"testing"
	"time"

	"hodei.dev/libs/domain/provider"
)

// TestWarn: an alert is raised once, whatever its cause says later, and cleared once.
func TestWarn(t *testing.T) {
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := provider.Provider{State: provider.StateEnabled}
	for i, c := range []struct {
		causes map[provider.Alert]string
		want   []provider.Event
	}{
		{nil, nil},
		{map[provider.Alert]string{provider.AlertUnhealthy: "no disk"}, []provider.Event{provider.AlertRaised{Alert: provider.AlertUnhealthy, Reason: "no disk"}}},
		{map[provider.Alert]string{provider.AlertUnhealthy: "no memory"}, nil},
		{map[provider.Alert]string{provider.AlertCircuitOpen: "3 failures"}, []provider.Event{
			provider.AlertCleared{Alert: provider.AlertUnhealthy, RaisedAt: t0, Reason: "its cause is gone"},
			provider.AlertRaised{Alert: provider.AlertCircuitOpen, Reason: "3 failures"},
		}},
	} {
		got := p.Warn(c.causes)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("look %d: got %+v, want %+v", i+1, got, c.want)
		}
		for _, e := range got {
			p = p.Evolve(e, provider.At{Version: p.Version + 1, Time: t0})
		}
	}
	gone, err := p.Remove("user/x")
	if err != nil || len(gone) != 2 {
		t.Fatalf("got %+v, %v", gone, err)
	}
	for _, e := range gone {
		p = p.Evolve(e, provider.At{Version: p.Version + 1, Time: t0})
	}
	if len(p.Alerts) != 0 || p.Warn(map[provider.Alert]string{provider.AlertUnhealthy: "no disk"}) != nil {
		t.Errorf("removed: %+v", p)
	}
}
