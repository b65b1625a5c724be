package relay_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"testing"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
)

// Fingerprints of a log in memory are always intact.
func (l *memory) Fingerprints(ctx context.Context, after int64, limit int) ([]store.Fingerprint, error) {
	events, err := l.Read(ctx, store.ReadOptions{After: after, Limit: limit})
	prints := make([]store.Fingerprint, len(events))
	for i, e := range events {
		digest := sha256.Sum256(e.Data)
		prints[i] = store.Fingerprint{Position: e.Position, ID: e.ID, Type: e.Type, Stream: e.Stream, Digest: digest[:], Intact: true}
	}
	return prints, err
}

func ignore(relay.Comparison) error { return nil }

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(t *testing.T, l *memory, cfg relay.Config)
		counts map[relay.Kind]int64
		first  int64
	}{
		{"all is well", func(*testing.T, *memory, relay.Config) {}, map[relay.Kind]int64{}, 0},
		{"other data", func(_ *testing.T, l *memory, _ relay.Config) {
			l.change(4000, func(e *event.Event) { e.Data = json.RawMessage(`{}`) })
		}, map[relay.Kind]int64{relay.Different: 1}, 4000},
		{"another event", func(_ *testing.T, l *memory, _ relay.Config) {
			l.change(17, func(e *event.Event) { e.ID = event.NewID() })
		}, map[relay.Kind]int64{relay.Different: 1}, 17},
		{"a lost tail", func(_ *testing.T, l *memory, _ relay.Config) { l.takeBack(4900, 0) }, map[relay.Kind]int64{relay.Beyond: 100}, 4901},
		{"a lost tail that has grown again", func(_ *testing.T, l *memory, _ relay.Config) { l.takeBack(4900, 300) }, map[relay.Kind]int64{relay.Different: 100}, 4901},
		{"interior deletes", func(t *testing.T, _ *memory, cfg relay.Config) {
			stream, err := bus.LookupEvents(t.Context(), cfg.JS)
			if err != nil {
				t.Fatal(err)
			}
			for _, seq := range []uint64{10, 11, 3000} {
				if err := stream.Stream.DeleteMsg(t.Context(), seq); err != nil {
					t.Fatal(err)
				}
			}
		}, map[relay.Kind]int64{relay.Missing: 3}, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := eventingtest.NATS(t)
			l := &memory{}
			l.add(5000)
			cfg := config(t, l, s.Conn())
			r := start(t, cfg)
			r.reaches(t, 5000)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, l, cfg)
			steps := 0
			got, err := relay.Compare(t.Context(), l, cfg.JS, 10, func(relay.Comparison) error { steps++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got.Counts, c.counts) {
				t.Errorf("counts %v, want %v; first %+v", got.Counts, c.counts, got.First)
			}
			if len(got.First) > 10 || c.first > 0 && got.First[0].Position != c.first {
				t.Errorf("first differences %+v, want them from %d", got.First, c.first)
			}
			if got.Checked != got.Total || steps < 2 {
				t.Errorf("reached %d of %d in %d steps", got.Checked, got.Total, steps)
			}
		})
	}
}

func TestCompareCountsWhatOnlyTheLogHas(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(100)
	cfg := config(t, l, s.Conn())
	cfg.Base = func(context.Context) (int64, error) { return 60, nil }
	r := start(t, cfg)
	r.reaches(t, 100)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	l.add(5)
	got, err := relay.Compare(t.Context(), l, cfg.JS, 10, ignore)
	if err != nil || got.Expired != 60 || got.Compared != 40 || got.Unpublished != 5 || len(got.Counts) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestCompareStopsWhenItsCallerGoes(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(5000)
	cfg := config(t, l, s.Conn())
	start(t, cfg).reaches(t, 5000)
	gone := errors.New("gone")
	got, err := relay.Compare(t.Context(), l, cfg.JS, 10, func(relay.Comparison) error { return gone })
	if !errors.Is(err, gone) || got.Checked >= got.Total {
		t.Errorf("went on to %d: %v", got.Checked, err)
	}
}
