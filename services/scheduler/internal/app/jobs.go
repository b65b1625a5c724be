// Package app holds the scheduler's use cases: queue, get, cancel, retry and
// watch jobs. Decisions are the domain's; this package loads, asks it, appends,
// and decides again when somebody else was faster. It keeps no state but what the
// gate has counted.
package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

// rounds is how often a decision is taken again after a conflict. Each conflict
// means that the job moved on, and a job has few moves.
const rounds = 8

// shown is how many matches of an ambiguous prefix are listed.
const shown = 10

// minPrefix is the least length of an id's prefix.
const minPrefix = 4

// Log is the event log as the use cases need it. *store.Store is one.
type Log interface {
	aggregate.Loader
	// Append makes all of it true or nothing; see store.Store.
	Append(ctx context.Context, a store.Append) ([]event.Event, error)
	// FindStreams lists streams whose id begins with a prefix, at most limit.
	FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]store.StreamRow, error)
	// LookupKey returns who holds a key, and whether anybody does.
	LookupKey(ctx context.Context, namespace, kind, value string) (store.Key, bool, error)
}

// Providers knows which providers there are.
type Providers interface {
	// Known tells whether an enabled provider has this name or id.
	Known(ctx context.Context, nameOrID string) (bool, error)
}

// View is a job with what only its envelopes say.
type View struct {
	job.Job
	// CorrelationID is that of the job's first event, QueuedBy its actor.
	CorrelationID, QueuedBy string
	// IdempotencyKey is what the job was queued with; may be empty.
	IdempotencyKey string
	// LastEventID is the newest event folded in.
	LastEventID string
}

// Jobs are the use cases. Safe for concurrent use.
type Jobs struct {
	log       Log
	providers Providers
	gate      *Gate
	now       func() time.Time
}

// New returns the use cases over a log. gate is what new jobs come through, now the
// clock that explanations use.
func New(log Log, providers Providers, gate *Gate, now func() time.Time) *Jobs {
	return &Jobs{log: log, providers: providers, gate: gate, now: now}
}

// Now is the time by the clock of the use cases.
func (a *Jobs) Now() time.Time { return a.now() }

// Evolve folds one event into a view. Events that it has already are ignored.
func (v View) Evolve(e event.Event) (View, error) {
	if e.StreamVersion <= v.Version {
		return v, nil
	}
	if v.Version == 0 {
		v.CorrelationID, v.QueuedBy = e.CorrelationID, e.Actor
		fact, err := aggregate.Decode(e)
		if err != nil {
			return v, err
		}
		if created, ok := fact.(job.Created); ok {
			v.IdempotencyKey = created.IdempotencyKey
		}
	}
	var err error
	v.Job, err = aggregate.EvolveJob(v.Job, e)
	v.LastEventID = e.ID
	return v, err
}

// Get folds a job from its events. What is not there is NotFound.
func (a *Jobs) Get(ctx context.Context, id string) (View, error) {
	v, err := a.refresh(ctx, View{Job: job.Job{ID: id}})
	if err == nil && v.Version == 0 {
		return View{}, notFound(id)
	}
	return v, err
}

// refresh folds what happened since.
func (a *Jobs) refresh(ctx context.Context, v View) (View, error) {
	events, err := a.log.Load(ctx, aggregate.JobStream(v.ID), v.Version)
	if err != nil {
		return v, fmt.Errorf("load job %s: %w", v.ID, err)
	}
	return fold(v, events)
}

func fold(v View, events []event.Event) (View, error) {
	for _, e := range events {
		var err error
		if v, err = v.Evolve(e); err != nil {
			return v, err
		}
	}
	return v, nil
}

// History returns every event of a job, oldest first.
func (a *Jobs) History(ctx context.Context, id string) ([]event.Event, error) {
	events, err := a.log.Load(ctx, aggregate.JobStream(id), 0)
	if err != nil {
		return nil, fmt.Errorf("load the history of job %s: %w", id, err)
	}
	if len(events) == 0 {
		return nil, notFound(id)
	}
	return events, nil
}

// Resolve returns the whole id of the job whose id is, or begins with, text (at
// least four hexadecimal digits). Several matches are Invalid and listed, none
// is NotFound.
func (a *Jobs) Resolve(ctx context.Context, text string) (string, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	if WholeID(text) {
		return text, nil
	}
	wrong := func(problem string, args ...any) error {
		var f fault.Fields
		f.Add("job_id", problem, args...)
		return f.Err("the job's id")
	}
	switch digits := strings.ReplaceAll(text, "-", ""); {
	case text == "":
		return "", wrong("missing: give a job's id or a prefix of it; `hodei job list` shows them")
	case len(digits) < minPrefix || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "":
		return "", wrong("%q: give a job's id or at least %d hexadecimal digits that it begins with", clip(text), minPrefix)
	}
	rows, err := a.log.FindStreams(ctx, aggregate.JobStream("").Type, text, shown+1)
	switch {
	case err != nil:
		return "", fmt.Errorf("find job %s: %w", text, err)
	case len(rows) == 0:
		return "", notFound(text)
	case len(rows) == 1:
		return rows[0].Stream.ID, nil
	}
	matches := make([]string, 0, shown+1)
	for _, r := range rows[:min(len(rows), shown)] {
		matches = append(matches, r.Stream.ID)
	}
	if len(rows) > shown {
		matches = append(matches, "...")
	}
	return "", wrong("%q is not unique, give more of it: it matches %s", text, strings.Join(matches, ", "))
}

// Cancel asks for the end of a job on behalf of meta's actor. Asking again while
// a request is pending changes nothing. A job that has ended is a Precondition error.
func (a *Jobs) Cancel(ctx context.Context, meta event.Meta, id, reason string) (View, error) {
	for round := 1; ; round++ {
		v, err := a.Get(ctx, id)
		if err != nil {
			return View{}, err
		}
		facts, err := v.RequestCancel(meta.Actor, reason)
		if err != nil || len(facts) == 0 {
			return v, err
		}
		change, err := aggregate.JobChange(v.Job, meta, facts)
		if err != nil {
			return View{}, err
		}
		events, err := a.log.Append(ctx, store.Append{Changes: []store.Change{change}})
		if errors.Is(err, fault.Conflict) && round < rounds {
			continue
		}
		if err != nil {
			return View{}, fmt.Errorf("cancel job %s: %w", id, err)
		}
		return fold(v, events)
	}
}

// Retry queues a new job with the spec and the correlation id of one that has ended.
// newID is the new job's, made by the client; empty = one is made. The same one again
// returns the first retry.
func (a *Jobs) Retry(ctx context.Context, meta event.Meta, id, newID string) (Queued, error) {
	old, err := a.Get(ctx, id)
	if err != nil {
		return Queued{}, err
	}
	spec, err := old.Retry()
	if err != nil {
		return Queued{}, err
	}
	meta.CorrelationID = old.CorrelationID
	if meta.CausationID == "" {
		meta.CausationID = old.LastEventID
	}
	queued, err := a.Queue(ctx, Request{Meta: meta, ID: newID, Spec: spec, RetryOf: id})
	if err != nil {
		return Queued{}, fmt.Errorf("retry job %s: %w", id, err)
	}
	return queued, nil
}

func notFound(id string) error {
	return fault.New(fault.NotFound, "there is no job %s", id).
		WithCode("JOB_NOT_FOUND", "list the jobs that there are: `hodei job list`")
}

// WholeID tells whether text is an id in its 36-character form.
func WholeID(text string) bool {
	if len(text) != 36 {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		default:
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "?") + "..."
	}
	return s
}
