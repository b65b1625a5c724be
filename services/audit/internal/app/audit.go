// Package app holds the audit's use cases: search, count and trace events. It
// resolves what people write (a prefix of an id) into what the audit log knows,
// and keeps no state.
package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/services/audit/core"
)

const (
	// maxTrace is the most events that a trace shows.
	maxTrace = 10_000
	// shown is how many matches of an ambiguous prefix are listed.
	shown = 10
	// minPrefix is the least length of an id's prefix.
	minPrefix = 4
)

// Filter selects events: everything that is set must match.
type Filter struct {
	CorrelationID string
	Types         []string
	Actor         string
	// Stream is one aggregate; with an empty ID all of its Type; zero means any.
	Stream    event.Stream
	Namespace string
	// Since is inclusive, Until exclusive.
	Since, Until time.Time
}

// OnlyTypes tells whether nothing but types is asked for.
func (f Filter) OnlyTypes() bool {
	return f.CorrelationID == "" && f.Actor == "" && f.Stream == (event.Stream{}) && f.Namespace == "" && f.Since.IsZero() && f.Until.IsZero()
}

// Page says which part of a search to return.
type Page struct {
	// After is the position that the page before ended with; 0 = the first page.
	After int64
	// Ascending is oldest first; else newest first.
	Ascending bool
	// Limit is the most events, at least 1.
	Limit int
}

// Log is the audit log.
type Log interface {
	// Search returns a page, and whether more follows.
	Search(ctx context.Context, f Filter, p Page) (events []event.Event, more bool, err error)
	// Count counts what Search would find in all, by type.
	Count(ctx context.Context, f Filter) (map[string]int64, error)
	// HasType tells whether the log has, or ever had, an event of a type.
	HasType(ctx context.Context, eventType string) (bool, error)
}

// Streams finds aggregates by a prefix of their id. *store.Store is one.
type Streams interface {
	FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]store.StreamRow, error)
}

// Audit is the use cases. Safe for concurrent use.
type Audit struct {
	log     Log
	streams Streams
}

// New returns the use cases over an audit log.
func New(log Log, streams Streams) *Audit { return &Audit{log: log, streams: streams} }

// Search returns a page of what matches, and whether more follows.
func (a *Audit) Search(ctx context.Context, f Filter, p Page) ([]event.Event, bool, error) {
	f, err := a.resolve(ctx, f)
	if err != nil {
		return nil, false, err
	}
	return a.log.Search(ctx, f, p)
}

// Count counts what matches, by type.
func (a *Audit) Count(ctx context.Context, f Filter) (map[string]int64, error) {
	f, err := a.resolve(ctx, f)
	if err != nil {
		return nil, err
	}
	return a.log.Count(ctx, f)
}

// Trace is the story of one correlation id.
type Trace struct {
	CorrelationID string
	// Events in the order of the log; Nodes put them into the order of causes.
	Events []event.Event
	Nodes  []core.Node
}

// Trace returns all events of a correlation id, or of the one that an aggregate
// began with, as a tree of causes. What is not known is NotFound; a story of more
// than 10,000 events is Exhausted.
func (a *Audit) Trace(ctx context.Context, correlationID string, stream event.Stream) (Trace, error) {
	if correlationID == "" {
		var err error
		if correlationID, err = a.correlationOf(ctx, stream); err != nil {
			return Trace{}, err
		}
	}
	events, more, err := a.log.Search(ctx, Filter{CorrelationID: correlationID}, Page{Ascending: true, Limit: maxTrace})
	switch {
	case err != nil:
		return Trace{}, fmt.Errorf("trace %s: %w", correlationID, err)
	case len(events) == 0:
		return Trace{}, fault.New(fault.NotFound, "there is no event with the correlation id %q", clip(correlationID)).
			WithCode("CORRELATION_NOT_FOUND", "check the id: `hodei job get ID` shows a job's correlation_id")
	case more:
		return Trace{}, fault.New(fault.Exhausted, "the correlation id %s has more than %d events", clip(correlationID), maxTrace).
			WithCode("TRACE_TOO_LARGE", "read it in pages: `hodei audit search --correlation-id`")
	}
	links := make([]core.Link, len(events))
	for i, e := range events {
		links[i] = core.Link{ID: e.ID, CausationID: e.CausationID, Position: e.Position}
	}
	return Trace{CorrelationID: correlationID, Events: events, Nodes: core.Tree(links)}, nil
}

func (a *Audit) correlationOf(ctx context.Context, stream event.Stream) (string, error) {
	if stream.ID == "" {
		return "", wrong("aggregate", "give the aggregate's id too, such as %s/01890a5d", stream.Type)
	}
	f, err := a.resolve(ctx, Filter{Stream: stream})
	if err != nil {
		return "", err
	}
	first, _, err := a.log.Search(ctx, f, Page{Ascending: true, Limit: 1})
	if err != nil {
		return "", fmt.Errorf("find the first event of %s: %w", f.Stream, err)
	}
	if len(first) == 0 {
		return "", fault.New(fault.NotFound, "the audit log has no event of %s yet", f.Stream).
			WithCode("NOT_YET_AUDITED", "try again in a moment; `hodei status` shows how far the audit is behind")
	}
	return first[0].CorrelationID, nil
}

// resolve checks what only the data can say: the types, and the aggregate's prefix.
func (a *Audit) resolve(ctx context.Context, f Filter) (Filter, error) {
	for _, t := range f.Types {
		if _, ok := catalogue.Lookup(t); ok {
			continue
		}
		// A newer build may append types that this one does not know.
		known, err := a.log.HasType(ctx, t)
		if err != nil {
			return f, err
		}
		if !known {
			return f, wrong("filter.types", "there is no event type %q: `hodei audit counts` lists what there is", clip(t))
		}
	}
	if f.Stream.ID == "" {
		return f, nil
	}
	if len(strings.ReplaceAll(f.Stream.ID, "-", "")) < minPrefix {
		return f, wrong("aggregate", "%q: give an id or at least %d hexadecimal digits that it begins with", f.Stream.ID, minPrefix)
	}
	rows, err := a.streams.FindStreams(ctx, f.Stream.Type, f.Stream.ID, shown+1)
	switch {
	case err != nil:
		return f, fmt.Errorf("find %s: %w", f.Stream, err)
	case len(rows) == 0:
		return f, fault.New(fault.NotFound, "there is no %s whose id is, or begins with, %q", f.Stream.Type, f.Stream.ID).
			WithCode("NOT_FOUND", "list what there is: `hodei "+f.Stream.Type+" list`")
	case len(rows) == 1:
		f.Stream = rows[0].Stream
		return f, nil
	}
	matches := make([]string, 0, shown+1)
	for _, r := range rows[:min(len(rows), shown)] {
		matches = append(matches, r.Stream.ID)
	}
	if len(rows) > shown {
		matches = append(matches, "...")
	}
	return f, wrong("aggregate", "%q is not unique, give more of it: it matches %s", f.Stream.ID, strings.Join(matches, ", "))
}

func wrong(field, problem string, args ...any) error {
	var f fault.Fields
	f.Add(field, problem, args...)
	return f.Err("the request")
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "?") + "..."
	}
	return s
}
