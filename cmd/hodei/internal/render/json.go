// Package render turns answers of the API into what the command line prints: JSON
// for programs, aligned tables and plain words for people.
//
// It promises that the keys of its JSON are the field names of the .proto files,
// that nothing is left out, and that nothing it prints for people can move the
// cursor of a terminal. It asks no server and knows no command.
package render

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// eventData is the one bytes field that holds JSON; all others are base64.
const eventData protoreflect.FullName = "hodei.scheduler.v1.Event.data"

// timestamp is the message that is written as a time.
const timestamp protoreflect.FullName = "google.protobuf.Timestamp"

// Compact returns m as JSON on one line, without a line break at its end. Every
// field is there, in the order of its number: zero values as they are, what is
// absent as null, empty lists and maps as [] and {}. 64-bit integers are numbers,
// enums their names, times RFC 3339 in UTC, bytes base64, and an event's data the
// JSON that it is. A nil message is null.
func Compact(m proto.Message) []byte {
	var b bytes.Buffer
	if m == nil {
		return []byte("null")
	}
	writeMessage(&b, m.ProtoReflect())
	return b.Bytes()
}

// Object writes m as [Compact] has it, indented for people, and a line break.
func Object(w io.Writer, m proto.Message) error { return Raw(w, Compact(m)) }

// Raw writes JSON indented for people, and a line break.
func Raw(w io.Writer, compact []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		return fmt.Errorf("indenting JSON: %w", err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// Line writes m as one line of a stream of objects.
func Line(w io.Writer, m proto.Message) error {
	_, err := w.Write(append(Compact(m), '\n'))
	return err
}

// With returns the object of m with one more key in front, whose value is marshalled.
func With(key string, value any, m proto.Message) ([]byte, error) {
	v, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", key, err)
	}
	var b bytes.Buffer
	b.WriteByte('{')
	writeString(&b, key)
	b.WriteByte(':')
	b.Write(v)
	if rest := Compact(m)[1:]; rest[0] == '}' {
		b.Write(rest)
	} else {
		b.WriteByte(',')
		b.Write(rest)
	}
	return b.Bytes(), nil
}

// Array writes a plain array, an element a line, as the elements come. Made by
// [NewArray]; not safe for concurrent use.
type Array struct {
	w io.Writer
	n int
}

// NewArray returns an array that is written to w; Close ends it.
func NewArray(w io.Writer) *Array { return &Array{w: w} }

// Add writes one element.
func (a *Array) Add(m proto.Message) error {
	lead := ",\n  "
	if a.n == 0 {
		lead = "[\n  "
	}
	a.n++
	_, err := a.w.Write(append([]byte(lead), Compact(m)...))
	return err
}

// Close writes the end of the array.
func (a *Array) Close() error {
	end := "\n]\n"
	if a.n == 0 {
		end = "[]\n"
	}
	_, err := io.WriteString(a.w, end)
	return err
}

func writeMessage(b *bytes.Buffer, m protoreflect.Message) {
	if m.Descriptor().FullName() == timestamp {
		writeTime(b, m)
		return
	}
	descriptors := m.Descriptor().Fields()
	fields := make([]protoreflect.FieldDescriptor, descriptors.Len())
	for i := range fields {
		fields[i] = descriptors.Get(i)
	}
	slices.SortFunc(fields, func(x, y protoreflect.FieldDescriptor) int { return int(x.Number()) - int(y.Number()) })
	b.WriteByte('{')
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(b, string(f.Name()))
		b.WriteByte(':')
		writeField(b, m, f)
	}
	b.WriteByte('}')
}

func writeField(b *bytes.Buffer, m protoreflect.Message, f protoreflect.FieldDescriptor) {
	switch {
	case f.HasPresence() && !m.Has(f):
		b.WriteString("null")
	case f.IsList():
		list := m.Get(f).List()
		b.WriteByte('[')
		for i := range list.Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			writeValue(b, f, list.Get(i))
		}
		b.WriteByte(']')
	case f.IsMap():
		writeMap(b, f, m.Get(f).Map())
	case f.FullName() == eventData:
		writeEmbedded(b, m.Get(f).Bytes())
	default:
		writeValue(b, f, m.Get(f))
	}
}

func writeMap(b *bytes.Buffer, f protoreflect.FieldDescriptor, m protoreflect.Map) {
	var keys []protoreflect.MapKey
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	slices.SortFunc(keys, func(x, y protoreflect.MapKey) int { return strings.Compare(x.String(), y.String()) })
	b.WriteByte('{')
	for i, k := range keys {
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(b, k.String())
		b.WriteByte(':')
		writeValue(b, f.MapValue(), m.Get(k))
	}
	b.WriteByte('}')
}

func writeValue(b *bytes.Buffer, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch f.Kind() {
	case protoreflect.BoolKind:
		b.WriteString(strconv.FormatBool(v.Bool()))
	case protoreflect.EnumKind:
		if e := f.Enum().Values().ByNumber(v.Enum()); e != nil {
			writeString(b, string(e.Name()))
		} else {
			b.WriteString(strconv.Itoa(int(v.Enum())))
		}
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		b.WriteString(strconv.FormatUint(v.Uint(), 10))
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		writeFloat(b, v.Float())
	case protoreflect.StringKind:
		writeString(b, v.String())
	case protoreflect.BytesKind:
		writeString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.MessageKind, protoreflect.GroupKind:
		writeMessage(b, v.Message())
	default: // the signed integers
		b.WriteString(strconv.FormatInt(v.Int(), 10))
	}
}

// writeFloat: JSON has no number for what is not finite.
func writeFloat(b *bytes.Buffer, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		b.WriteString("null")
		return
	}
	b.WriteString(strconv.FormatFloat(v, 'g', -1, 64))
}

func writeTime(b *bytes.Buffer, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	at := time.Unix(m.Get(fields.ByName("seconds")).Int(), m.Get(fields.ByName("nanos")).Int())
	writeString(b, at.UTC().Format(time.RFC3339Nano))
}

// writeEmbedded writes bytes that hold JSON as what they are; empty ones are null,
// and what is not JSON after all is base64, so that nothing is hidden.
func writeEmbedded(b *bytes.Buffer, data []byte) {
	if len(data) == 0 {
		b.WriteString("null")
		return
	}
	var compact bytes.Buffer
	if json.Compact(&compact, data) != nil {
		writeString(b, base64.StdEncoding.EncodeToString(data))
		return
	}
	b.Write(compact.Bytes())
}

func writeString(b *bytes.Buffer, s string) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s)         // a string and a buffer cannot fail
	b.Truncate(b.Len() - 1) // the encoder's line break
}
