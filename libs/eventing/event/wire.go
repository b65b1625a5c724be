package event

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
)

// The wire form is a CloudEvent 1.0 in binary mode: each attribute is a header
// with the prefix "ce-", the data is the payload, untouched. Header names are
// lower case, because NATS compares them as they are. Values outside printable
// ASCII, and '%', are percent-encoded, as the bindings of CloudEvents say: a
// header can hold neither line ends nor outer blanks.
const (
	headerSpecVersion   = "ce-specversion"
	headerID            = "ce-id"
	headerType          = "ce-type"
	headerSource        = "ce-source"
	headerSubject       = "ce-subject"
	headerTime          = "ce-time"
	headerDataSchema    = "ce-dataschema"
	headerContentType   = "content-type"
	headerCorrelationID = "ce-correlationid"
	headerCausationID   = "ce-causationid"
	headerActor         = "ce-actor"
	headerNamespace     = "ce-namespace"
	headerStreamVersion = "ce-streamversion"
	headerPosition      = "ce-position"
	headerTraceParent   = "ce-traceparent"
	headerTraceState    = "ce-tracestate"

	// headerTombstone marks a message that only holds an event's place.
	headerTombstone = "hodei-tombstone"
)

const (
	typePrefix   = "dev.hodei."
	sourcePrefix = "/hodei/"
	schemaPrefix = "https://hodei.dev/schemas/"
	jsonType     = "application/json"
	specVersion  = "1.0"
)

// DecodeError says which header of a message makes it unreadable as an event.
// It is a fault.Invalid: the message stays unreadable however often it is tried.
type DecodeError struct {
	// Header is the name of the header, such as "ce-type".
	Header string
	// Value is what it held, decoded as far as possible; "" where it is missing.
	Value string
	// Problem says what is wrong with it.
	Problem string
}

// Error names the header, its value and the problem.
func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode event: header %s %q: %s", e.Header, e.Value, e.Problem)
}

// Is reports whether target is fault.Invalid.
func (e *DecodeError) Is(target error) bool { return target == fault.Invalid }

// EncodeValue is how a text stands in a header: percent-encoded where it must be.
func EncodeValue(s string) string { return encodeValue(s) }

// DecodeValue is the text of a header value; a broken encoding is taken as it is.
func DecodeValue(s string) string {
	v, err := decodeValue(s)
	if err != nil {
		return s
	}
	return v
}

// Header is e's envelope as the headers of a message. Attributes that are empty
// are left out. Together with e.Data it is read back by [FromMessage].
func (e Event) Header() map[string][]string {
	h := make(map[string][]string, 16)
	values := make([]string, 0, 16) // one allocation for all values
	set := func(name, value string) {
		if value == "" {
			return
		}
		values = append(values, encodeValue(value))
		h[name] = values[len(values)-1 : len(values) : len(values)]
	}
	name := e.Type + ".v" + strconv.Itoa(e.Version)
	set(headerSpecVersion, specVersion)
	set(headerID, e.ID)
	set(headerType, typePrefix+name)
	set(headerSource, sourcePrefix+e.Source)
	set(headerSubject, e.Stream.String())
	if !e.Time.IsZero() {
		set(headerTime, e.Time.UTC().Format(time.RFC3339Nano))
	}
	set(headerContentType, jsonType)
	set(headerDataSchema, schemaPrefix+name+".json")
	set(headerCorrelationID, e.CorrelationID)
	set(headerCausationID, e.CausationID)
	set(headerActor, e.Actor)
	set(headerNamespace, e.Namespace)
	if e.StreamVersion != 0 {
		set(headerStreamVersion, strconv.Itoa(e.StreamVersion))
	}
	if e.Position != 0 {
		set(headerPosition, strconv.FormatInt(e.Position, 10))
	}
	set(headerTraceParent, e.TraceParent)
	set(headerTraceState, e.TraceState)
	return h
}

// FromMessage reads an event from a message's headers and payload. Every error
// is a [*DecodeError]. The event keeps data; the caller must not change it.
// Attributes that are not of this envelope are ignored, as CloudEvents demands.
func FromMessage(header map[string][]string, data []byte) (Event, error) {
	r := reader{header: header}
	var e Event
	if v := r.text(headerSpecVersion, true); v != specVersion {
		r.fail(headerSpecVersion, v, "is not 1.0")
	}
	if v, ok := header[headerContentType]; ok && len(v) > 0 && !strings.HasPrefix(v[0], jsonType) {
		r.fail(headerContentType, v[0], "is not "+jsonType)
	}
	e.ID = r.text(headerID, true)
	e.Type, e.Version = r.eventType()
	e.Source = r.prefixed(headerSource, sourcePrefix)
	e.Stream = r.stream()
	e.Time = r.time(headerTime)
	e.CorrelationID = r.text(headerCorrelationID, false)
	e.CausationID = r.text(headerCausationID, false)
	e.Actor = r.text(headerActor, false)
	e.Namespace = r.text(headerNamespace, false)
	e.StreamVersion = int(r.number(headerStreamVersion, 31))
	e.Position = r.number(headerPosition, 63)
	e.TraceParent = r.text(headerTraceParent, false)
	e.TraceState = r.text(headerTraceState, false)
	e.Data = data
	if r.err != nil {
		return Event{}, r.err
	}
	return e, nil
}

// Tombstone is the message that holds the place of an event that can never be
// published: its position, its id and why, and no data. The event itself is in
// the log, where consumers read it.
func (e Event) Tombstone(reason string) map[string][]string {
	if len(reason) > 1024 {
		reason = reason[:1024]
	}
	return map[string][]string{
		headerTombstone: {encodeValue(reason)},
		headerID:        {encodeValue(e.ID)},
		headerPosition:  {strconv.FormatInt(e.Position, 10)},
	}
}

// TombstoneOf reports whether a message is a tombstone, and the position and id
// of the event whose place it holds (zero values where unreadable).
func TombstoneOf(header map[string][]string) (position int64, id string, ok bool) {
	if len(header[headerTombstone]) == 0 {
		return 0, "", false
	}
	r := reader{header: header}
	return r.number(headerPosition, 63), r.text(headerID, false), true
}

// reader reads headers and keeps the first error.
type reader struct {
	header map[string][]string
	err    error
}

func (r *reader) fail(name, value, problem string) {
	if r.err == nil {
		r.err = &DecodeError{Header: name, Value: value, Problem: problem}
	}
}

func (r *reader) text(name string, required bool) string {
	v := r.header[name]
	if len(v) == 0 {
		if required {
			r.fail(name, "", "is missing")
		}
		return ""
	}
	s, err := decodeValue(v[0])
	if err != nil {
		r.fail(name, v[0], err.Error())
	}
	return s
}

func (r *reader) prefixed(name, prefix string) string {
	v := r.text(name, true)
	rest, ok := strings.CutPrefix(v, prefix)
	if !ok {
		r.fail(name, v, "does not start with "+prefix)
	}
	return rest
}

// eventType splits "dev.hodei.JobCreated.v1".
func (r *reader) eventType() (string, int) {
	v := r.prefixed(headerType, typePrefix)
	dot := strings.LastIndex(v, ".v")
	if dot < 0 {
		r.fail(headerType, v, "does not end in .v<number>")
		return "", 0
	}
	n, err := strconv.Atoi(v[dot+2:])
	if err != nil || n < 0 || strconv.Itoa(n) != v[dot+2:] {
		r.fail(headerType, v, "does not end in .v<number>")
	}
	return v[:dot], n
}

func (r *reader) stream() Stream {
	v := r.text(headerSubject, true)
	kind, id, ok := strings.Cut(v, "/")
	if !ok {
		r.fail(headerSubject, v, "is not <type>/<id>")
	}
	return Stream{Type: kind, ID: id}
}

func (r *reader) time(name string) time.Time {
	v := r.text(name, false)
	if v == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		r.fail(name, v, "is not an RFC 3339 time")
	}
	return t.UTC()
}

func (r *reader) number(name string, bits int) int64 {
	v := r.text(name, false)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, bits+1)
	if err != nil || n < 0 {
		r.fail(name, v, "is not a number")
		return 0
	}
	return n
}

const upperHex = "0123456789ABCDEF"

// plain reports whether c stands for itself in a header value.
func plain(c byte) bool { return c > ' ' && c < 0x7f && c != '%' && c != '"' }

func encodeValue(s string) string {
	n := 0
	for i := range len(s) {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

var errPercent = errors.New("has a broken percent-encoding")

func decodeValue(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return s, errPercent
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return s, errPercent
		}
		b = append(b, byte(n))
		i += 2
	}
	return string(b), nil
}
