package store

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
)

// prepare checks an append and makes of it what the committer needs. It runs in
// the caller's goroutine, so that only the commit itself is done by one.
func prepare(a Append) (*pending, error) {
	p := &pending{Append: a}
	var wrong fault.Fields
	if len(a.Changes) == 0 {
		wrong.Add("changes", "must not be empty")
	}
	seen := map[event.Stream]bool{}
	for i, c := range a.Changes {
		p.addChange(&wrong, fmt.Sprintf("changes[%d]", i), c)
		if seen[c.Stream] {
			wrong.Add(fmt.Sprintf("changes[%d].stream", i), "%s is there twice", c.Stream)
		}
		seen[c.Stream] = true
	}
	names := map[keyName]bool{}
	for i, k := range a.Keys {
		path := fmt.Sprintf("keys[%d]", i)
		checkText(&wrong, path+".namespace", k.Namespace, required)
		checkText(&wrong, path+".kind", k.Kind, required)
		checkText(&wrong, path+".value", k.Value, required)
		p.holders = append(p.holders, checkStream(&wrong, path+".stream", k.Stream))
		name := keyName{k.Namespace, k.Kind, k.Value}
		if names[name] {
			wrong.Add(path, "%s %q is there twice", k.Kind, k.Value)
		}
		names[name] = true
	}
	if len(p.events) > MaxAppendEvents {
		wrong.Add("changes", "have %d events, at most %d are allowed", len(p.events), MaxAppendEvents)
	}
	if p.bytes > MaxAppendBytes {
		wrong.Add("changes", "have %d bytes of data, at most %d are allowed", p.bytes, MaxAppendBytes)
	}
	if err := wrong.Err("append"); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pending) addChange(wrong *fault.Fields, path string, c Change) {
	p.streams = append(p.streams, checkStream(wrong, path+".stream", c.Stream))
	checkText(wrong, path+".namespace", c.Namespace, required)
	checkText(wrong, path+".state", c.State, optional)
	if c.Expected < 0 {
		wrong.Add(path+".expected", "must not be negative")
	}
	if len(c.Events) == 0 {
		wrong.Add(path+".events", "must not be empty")
	}
	for i, e := range c.Events {
		at := fmt.Sprintf("%s.events[%d]", path, i)
		if e.Stream != c.Stream && e.Stream != (event.Stream{}) {
			wrong.Add(at+".stream", "is %s, but the change is of %s", e.Stream, c.Stream)
		}
		e.Stream, e.StreamVersion = c.Stream, c.Expected+1+i
		if e.Namespace == "" {
			e.Namespace = c.Namespace
		}
		id, ok := parseID(e.ID)
		if !ok {
			wrong.Add(at+".id", "%q is not a UUID", e.ID)
		}
		checkEvent(wrong, at, e)
		digest := sha256.Sum256(e.Data)
		p.events, p.ids, p.digests = append(p.events, e), append(p.ids, id), append(p.digests, digest[:])
		p.bytes += len(e.Data)
	}
}

func checkEvent(wrong *fault.Fields, path string, e event.Event) {
	for _, f := range []struct {
		name, text string
		need       need
	}{
		{"type", e.Type, required},
		{"namespace", e.Namespace, required},
		{"correlation_id", e.CorrelationID, required},
		{"causation_id", e.CausationID, optional},
		{"actor", e.Actor, required},
		{"source", e.Source, required},
		{"traceparent", e.TraceParent, optional},
	} {
		checkText(wrong, path+"."+f.name, f.text, f.need)
	}
	checkTextOf(wrong, path+".tracestate", e.TraceState, optional, MaxTraceStateBytes)
	if e.Version < 1 {
		wrong.Add(path+".version", "must be at least 1")
	}
	checkData(wrong, path+".data", e.Data)
}

func checkData(wrong *fault.Fields, path string, data []byte) {
	switch {
	case len(data) > MaxDataBytes:
		wrong.Add(path, "has %d bytes, at most %d are allowed", len(data), MaxDataBytes)
	case !utf8.Valid(data):
		wrong.Add(path+jsonPath(data, badUTF8), "is not valid UTF-8")
	case !json.Valid(data):
		wrong.Add(path, "is not JSON")
	default:
		if problem, found := jsonProblem(data); found {
			wrong.Add(path+problem.path, "%s", problem.what)
		}
	}
}

func checkStream(wrong *fault.Fields, path string, s event.Stream) pgtype.UUID {
	checkText(wrong, path+".type", s.Type, required)
	id, ok := parseID(s.ID)
	if !ok {
		wrong.Add(path+".id", "%q is not a UUID", s.ID)
	}
	return id
}

// need says whether a text may be empty.
type need bool

const (
	required need = true
	optional need = false
)

func checkText(wrong *fault.Fields, path, text string, n need) {
	checkTextOf(wrong, path, text, n, MaxTextBytes)
}

func checkTextOf(wrong *fault.Fields, path, text string, n need, limit int) {
	switch {
	case text == "" && n == required:
		wrong.Add(path, "must not be empty")
	case len(text) > limit:
		wrong.Add(path, "has %d bytes, at most %d are allowed", len(text), limit)
	case !utf8.ValidString(text):
		wrong.Add(path, "is not valid UTF-8")
	case strings.IndexByte(text, 0) >= 0:
		wrong.Add(path, "contains NUL")
	}
}
