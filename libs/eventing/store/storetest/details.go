package storetest

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

func testInvalid(t *testing.T, a, _ Log) {
	t.Helper()
	data := func(raw string) func(*store.Append) {
		return func(ap *store.Append) { ap.Changes[0].Events[1].Data = json.RawMessage(raw) }
	}
	for _, test := range []struct {
		name  string
		spoil func(*store.Append)
		field string
	}{
		{"nothing", func(ap *store.Append) { ap.Changes = nil }, "changes"},
		{"no events", func(ap *store.Append) { ap.Changes[0].Events = nil }, "changes[0].events"},
		{"same stream twice", func(ap *store.Append) { ap.Changes = append(ap.Changes, ap.Changes[0]) }, "changes[1].stream"},
		{"stream id", func(ap *store.Append) { ap.Changes[0].Stream.ID = "job-1" }, "changes[0].stream.id"},
		{"stream type", func(ap *store.Append) { ap.Changes[0].Stream.Type = "" }, "changes[0].stream.type"},
		{"negative version", func(ap *store.Append) { ap.Changes[0].Expected = -1 }, "changes[0].expected"},
		{"event of another stream", func(ap *store.Append) { ap.Changes[0].Events[0].Stream = NewStream("job") }, "changes[0].events[0].stream"},
		{"event id", func(ap *store.Append) { ap.Changes[0].Events[0].ID = "1" }, "changes[0].events[0].id"},
		{"no type", func(ap *store.Append) { ap.Changes[0].Events[0].Type = "" }, "changes[0].events[0].type"},
		{"no version", func(ap *store.Append) { ap.Changes[0].Events[0].Version = 0 }, "changes[0].events[0].version"},
		{"no correlation", func(ap *store.Append) { ap.Changes[0].Events[0].CorrelationID = "" }, "changes[0].events[0].correlation_id"},
		{"NUL in actor", func(ap *store.Append) { ap.Changes[0].Events[0].Actor = "user/\x00" }, "changes[0].events[0].actor"},
		{"bad UTF-8 in cause", func(ap *store.Append) { ap.Changes[0].Events[0].CausationID = "\xff" }, "changes[0].events[0].causation_id"},
		{"long source", func(ap *store.Append) { ap.Changes[0].Events[0].Source = strings.Repeat("s", 2000) }, "changes[0].events[0].source"},
		{"long key", func(ap *store.Append) { ap.Keys[0].Value = strings.Repeat("k", 2000) }, "keys[0].value"},
		{"empty key", func(ap *store.Append) { ap.Keys[0].Value = "" }, "keys[0].value"},
		{"key twice", func(ap *store.Append) { ap.Keys = append(ap.Keys, ap.Keys[0]) }, "keys[1]"},
		{"large data", data(`"` + strings.Repeat("x", store.MaxDataBytes) + `"`), "changes[0].events[1].data"},
		{"no data", data(``), "changes[0].events[1].data"},
		{"not JSON", data(`{"a":}`), "changes[0].events[1].data"},
		{"bad UTF-8 in data", data("{\"spec\":{\"env\":[\"é\",\"\xff\"]}}"), "changes[0].events[1].data.spec.env[1]"},
		{"NUL in data", data(`{"ok":"\\u0000","spec":{"env":{"A":"a\u0000b"}}}`), "changes[0].events[1].data.spec.env.A"},
		{"NUL in a name", data(`{"a\u0000":1}`), "changes[0].events[1].data.(name)"},
		{"half a pair", data(`[1, {"x": ["\ud83d\ude00", "\ud83d"]}]`), "changes[0].events[1].data[1].x[1]"},
		{"other half", data(`{"x":"\uDE00"}`), "changes[0].events[1].data.x"},
		{"huge number", data(`{"x":[1e5,1e400000]}`), "changes[0].events[1].data.x[1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			stream := NewStream("job")
			ap := One(NewChange(t, stream, 0, 2))
			ap.Keys = []store.Key{{Namespace: "default", Kind: "k", Value: "v", Stream: stream}}
			for i := range ap.Changes[0].Events {
				ap.Changes[0].Events[i].Stream = event.Stream{} // the change's
			}
			test.spoil(&ap)
			_, err := a.Append(t.Context(), ap)
			var f *fault.Error
			if !errors.Is(err, fault.Invalid) || !errors.As(err, &f) {
				t.Fatalf("got %v, want invalid", err)
			}
			var names []string
			for _, field := range f.Fields {
				names = append(names, field.Name)
			}
			if diff := cmp.Diff([]string{test.field}, names); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
	if headOf(t, a) != 0 {
		t.Error("an invalid append happened")
	}
	// What looks alike but is fine, up to the limit.
	fine := NewChange(t, NewStream("job"), 0, 3)
	fine.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", store.MaxDataBytes-2) + `"`)
	fine.Events[1].Data = json.RawMessage(`{"a":"\\u0000 \\ud83d","b":-1.5E-300,"c":"1e999999999","d":{"":[[],{}]}}`)
	fine.Events[2].Data = json.RawMessage(`0`)
	appended(t, a, One(fine))
}

func testFind(t *testing.T, a, b Log) {
	t.Helper()
	ids := []string{
		"0190aaaa-0000-7000-8000-000000000001", "0190aaaa-0000-7000-8000-000000000002",
		"0190aaab-0000-7000-8000-000000000001", "ffffffff-ffff-7fff-bfff-ffffffffffff",
	}
	for _, id := range ids {
		appended(t, a, One(NewChange(t, event.Stream{Type: "job", ID: id}, 0, 1)))
	}
	appended(t, a, One(NewChange(t, event.Stream{Type: "worker", ID: "0190aaaa-0000-7000-8000-000000000003"}, 0, 1)))
	for _, test := range []struct {
		prefix string
		limit  int
		want   []string
	}{
		{"0190aaaa", 10, ids[:2]},
		{"0190AAAA-0", 10, ids[:2]},
		{"0190aaaa00007000800000000000000", 0, ids[:2]},
		{ids[1], 10, ids[1:2]},
		{"0190aaa", 10, ids[:3]},
		{"", 0, ids[:2]},
		{"", 10, ids},
		{"f", 10, ids[3:]},
		{"0191", 10, nil},
	} {
		rows, err := b.FindStreams(t.Context(), "job", test.prefix, test.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range rows {
			got = append(got, r.Stream.ID)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("prefix %q, limit %d (-want +got):\n%s", test.prefix, test.limit, diff)
		}
	}
	for _, bad := range []string{"xyz", "0190aaaa'", strings.Repeat("0", 33)} {
		if _, err := b.FindStreams(t.Context(), "job", bad, 1); !errors.Is(err, fault.Invalid) {
			t.Errorf("prefix %q: got %v, want invalid", bad, err)
		}
	}
}

func testState(t *testing.T, a, b Log) {
	t.Helper()
	stream := NewStream("job")
	step := func(expected int, state string, terminal bool) store.StreamRow {
		t.Helper()
		c := NewChange(t, stream, expected, 1)
		c.State, c.Terminal = state, terminal
		appended(t, a, One(c))
		rows, err := b.FindStreams(t.Context(), "job", stream.ID, 2)
		if err != nil || len(rows) != 1 {
			t.Fatalf("%v, %v", rows, err)
		}
		return rows[0]
	}
	for _, s := range []struct {
		state, want string
		terminal    bool
	}{{"PENDING", "PENDING", false}, {"", "PENDING", false}, {"DONE", "DONE", true}, {"", "DONE", false}} {
		row := step(len(loaded(t, a, stream, 0)), s.state, s.terminal)
		want := store.StreamRow{Stream: stream, Namespace: "default", Version: row.Version, State: s.want, Terminal: s.terminal}
		if diff := cmp.Diff(want, row); diff != "" {
			t.Error(diff)
		}
	}
}
