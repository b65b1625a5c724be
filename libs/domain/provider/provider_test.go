package provider_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
)

func spec(labels map[string]string) provider.Spec {
	return provider.Spec{
		Name: "local", Kind: provider.Process, MaxWorkers: 1, IdleTimeout: unit.Duration(time.Minute), ScheduledTimeout: unit.Duration(time.Minute), Labels: labels,
	}
}

func TestLabelsAreRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		labels map[string]string
		want   string // the fields
	}{
		"none":    {nil, ""},
		"good":    {map[string]string{"zone": "eu west", "hodei.dev/gpu": ""}, ""},
		"a key":   {map[string]string{"": "x"}, "labels"},
		"a value": {map[string]string{"zone": strings.Repeat("x", 257), "nul": "\x00"}, "labels.nul labels.zone"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			if fe, ok := errors.AsType[*fault.Error](spec(c.labels).Validate()); ok {
				for _, f := range fe.Fields {
					got = append(got, f.Name)
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("fields %q, want %q", s, c.want)
			}
		})
	}
}

// TestOtherLabelsAreAChange: another value is ProviderUpdated, the same ones are nothing.
func TestOtherLabelsAreAChange(t *testing.T) {
	var p provider.Provider
	for i, c := range []struct {
		labels map[string]string
		want   string // the event
	}{
		{map[string]string{"a": "1", "b": "2"}, "ProviderRegistered"},
		{map[string]string{"b": "2", "a": "1"}, ""},
		{map[string]string{"a": "1", "b": "3"}, "ProviderUpdated"},
		{nil, "ProviderUpdated"},
		{map[string]string{}, ""},
	} {
		events, err := p.Register(spec(c.labels), provider.Capabilities{}, "user/ann")
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, e := range events {
			got = e.EventType()
			p = p.Evolve(e, provider.At{Version: p.Version + 1})
		}
		if got != c.want || len(p.Spec.Labels) != len(c.labels) {
			t.Errorf("registration %d: event %q, want %q; labels %v", i+1, got, c.want, p.Spec.Labels)
		}
	}
}
