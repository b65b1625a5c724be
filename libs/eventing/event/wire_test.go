package event_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/format"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/google/go-cmp/cmp"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

func sample() event.Event {
	return event.Event{
		Meta: event.Meta{
			Source: "scheduler", Namespace: "team-a", CorrelationID: "c-1", CausationID: "e-0", Actor: "user/ana",
			TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "a=1",
		},
		ID: "0190d3a4-7f00-7000-8000-000000000001", Type: "JobCreated", Version: 2,
		Stream:        event.Stream{Type: "job", ID: "0190d3a4-7f00-7000-8000-0000000000aa"},
		StreamVersion: 3, Position: 9_007_199_254_740_993,
		Time: time.Date(2026, 3, 4, 5, 6, 7, 891_234_000, time.UTC),
		Data: []byte(`{"b": 1,  "a":2}`),
	}
}

func TestHeaderHasTheAttributesOfTheContract(t *testing.T) {
	want := map[string][]string{
		"ce-specversion": {"1.0"}, "ce-id": {"0190d3a4-7f00-7000-8000-000000000001"}, "ce-type": {"dev.hodei.JobCreated.v2"},
		"ce-source": {"/hodei/scheduler"}, "ce-subject": {"job/0190d3a4-7f00-7000-8000-0000000000aa"},
		"ce-time": {"2026-03-04T05:06:07.891234Z"}, "content-type": {"application/json"},
		"ce-dataschema":    {"https://hodei.dev/schemas/JobCreated.v2.json"},
		"ce-correlationid": {"c-1"}, "ce-causationid": {"e-0"}, "ce-actor": {"user/ana"}, "ce-namespace": {"team-a"},
		"ce-streamversion": {"3"}, "ce-position": {"9007199254740993"},
		"ce-traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "ce-tracestate": {"a=1"},
	}
	if diff := cmp.Diff(want, sample().Header()); diff != "" {
		t.Fatal(diff)
	}
}

func TestRoundTrip(t *testing.T) {
	hostile := sample()
	hostile.Actor = "user/José \"x\" 100%\r\nce-id: forged"
	hostile.CorrelationID = " leading and trailing "
	minimal := event.Event{ID: "1", Type: "T", Version: 1, Stream: event.Stream{Type: "job", ID: "x"}, Data: []byte("{}")}
	for name, e := range map[string]event.Event{"full": sample(), "hostile": hostile, "minimal": minimal} {
		t.Run(name, func(t *testing.T) {
			got, err := event.FromMessage(e.Header(), e.Data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(e, got); diff != "" {
				t.Fatal(diff)
			}
			for k, v := range e.Header() {
				if strings.ContainsAny(v[0], "\r\n ") {
					t.Fatalf("header %s holds %q", k, v[0])
				}
			}
		})
	}
}

func TestDecodeErrorsNameTheHeader(t *testing.T) {
	for header, values := range map[string][]string{
		"ce-specversion":   {"", "0.3"},
		"content-type":     {"text/plain"},
		"ce-id":            {""},
		"ce-type":          {"", "com.example.X.v1", "dev.hodei.X", "dev.hodei.X.vone", "dev.hodei.X.v01", "dev.hodei.X.v-1"},
		"ce-source":        {"", "scheduler"},
		"ce-subject":       {"", "job"},
		"ce-time":          {"yesterday"},
		"ce-position":      {"-1", "1e3", "9223372036854775808"},
		"ce-streamversion": {"x", "4294967296"},
		"ce-actor":         {"%", "%zz"},
	} {
		for _, v := range values {
			h := sample().Header()
			if v == "" {
				delete(h, header)
			} else {
				h[header] = []string{v}
			}
			_, err := event.FromMessage(h, nil)
			var d *event.DecodeError
			if !errors.As(err, &d) || d.Header != header || !errors.Is(err, fault.Invalid) {
				t.Errorf("%s=%q: got %v", header, v, err)
			}
		}
	}
}

func TestTombstoneHoldsPositionAndID(t *testing.T) {
	e := sample()
	pos, id, ok := event.TombstoneOf(e.Tombstone("too large"))
	if !ok || pos != e.Position || id != e.ID {
		t.Fatal(pos, id, ok)
	}
	if _, _, ok := event.TombstoneOf(e.Header()); ok {
		t.Fatal("an event is not a tombstone")
	}
	if _, err := event.FromMessage(e.Tombstone("too large"), nil); err == nil {
		t.Fatal("a tombstone is not an event")
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add("id", "JobCreated", 1, "scheduler", "default", "job", "x", "corr", "user/a", int64(7), int64(1700000000), []byte(`{}`))
	f.Add("%", "\r\n", 0, "é", " ", "", "/", "%41", "\x00\xff", int64(0), int64(-1), []byte{0xff})
	f.Fuzz(func(t *testing.T, id, typ string, version int, source, ns, kind, stream, corr, actor string, pos, sec int64, data []byte) {
		if id == "" || version < 0 || pos < 0 || strings.Contains(kind, "/") || sec < 0 || sec > 1<<37 {
			return // no event has these
		}
		e := event.Event{
			Meta: event.Meta{Source: source, Namespace: ns, CorrelationID: corr, Actor: actor}, ID: id, Type: typ, Version: version,
			Stream: event.Stream{Type: kind, ID: stream}, Position: pos, Time: time.Unix(sec, 0).UTC(), Data: data,
		}
		got, err := event.FromMessage(e.Header(), e.Data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("ce-type", "dev.hodei.X.v1")
	f.Fuzz(func(t *testing.T, header, value string) {
		h := sample().Header()
		h[header] = []string{value}
		if _, err := event.FromMessage(h, nil); err != nil {
			if _, ok := errors.AsType[*event.DecodeError](err); !ok {
				t.Fatal(err)
			}
		}
	})
}

// message is how the SDK's NATS protocols present headers: binary mode, prefix "ce-".
type message struct {
	header map[string][]string
	data   []byte
}

var specs = spec.WithPrefix("ce-")

func (m message) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (m message) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (m message) GetAttribute(k spec.Kind) (spec.Attribute, any) {
	attr := specs.Version(m.header["ce-specversion"][0]).AttributeFromKind(k)
	if attr == nil {
		return nil, nil
	}
	return attr, m.header[attr.PrefixedName()][0]
}

func (m message) GetExtension(name string) any { return m.header["ce-"+name][0] }

func (m message) Finish(error) error { return nil }

func (m message) ReadBinary(ctx context.Context, w binding.BinaryWriter) error {
	version := specs.Version(m.header["ce-specversion"][0])
	for k, v := range m.header {
		var err error
		switch attr := version.Attribute(k); {
		case attr != nil:
			err = w.SetAttribute(attr, v[0])
		case k == "content-type":
			err = w.SetAttribute(version.AttributeFromKind(spec.DataContentType), v[0])
		case strings.HasPrefix(k, "ce-"):
			err = w.SetExtension(strings.TrimPrefix(k, "ce-"), v[0])
		}
		if err != nil {
			return err
		}
	}
	return w.SetData(io.Reader(bytes.NewReader(m.data)))
}

func TestTheCloudEventsSDKReadsIt(t *testing.T) {
	e := sample()
	got, err := binding.ToEvent(t.Context(), message{e.Header(), e.Data})
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Fatal(err)
	}
	if got.ID() != e.ID || got.Type() != "dev.hodei.JobCreated.v2" || got.Source() != "/hodei/scheduler" || got.Subject() != e.Stream.String() ||
		!got.Time().Equal(e.Time) || got.DataContentType() != "application/json" || got.DataSchema() != "https://hodei.dev/schemas/JobCreated.v2.json" {
		t.Fatalf("%v", got)
	}
	want := map[string]any{
		"correlationid": "c-1", "causationid": "e-0", "actor": "user/ana", "namespace": "team-a", "streamversion": "3",
		"position": "9007199254740993", "traceparent": e.TraceParent, "tracestate": "a=1",
	}
	if diff := cmp.Diff(want, got.Extensions()); diff != "" {
		t.Fatal(diff)
	}
	if !bytes.Equal(got.Data(), e.Data) {
		t.Fatalf("%s", got.Data())
	}
	if _, err := format.JSON.Marshal(got); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkHeader(b *testing.B) {
	e := sample()
	b.ReportAllocs()
	for b.Loop() {
		_ = e.Header()
	}
}

func BenchmarkFromMessage(b *testing.B) {
	e := sample()
	h := e.Header()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.FromMessage(h, e.Data); err != nil {
			b.Fatal(err)
		}
	}
}
