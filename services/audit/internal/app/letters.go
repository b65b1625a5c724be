package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
)

const (
	// maxLetterEvents is the most events of dead letters that one question reads.
	maxLetterEvents = 100_000
	// lookAgain is how often a wait for an outcome asks the log although nothing was heard.
	lookAgain = 5 * time.Second
	// answerWithin is how long the outcome of one replay is waited for.
	answerWithin = 30 * time.Second
)

// Letter is a dead letter with what its envelope says.
type Letter struct {
	deadletter.Letter
	CorrelationID, Namespace string
}

// LetterFilter selects letters: everything that is set must match.
type LetterFilter struct {
	// IDs are ids or beginnings of ids; each must be one letter's.
	IDs                                                  []string
	Service, Type, Aggregate, CorrelationID, Fingerprint string
	// Since is inclusive, Until exclusive; both of when it was recorded.
	Since, Until time.Time
	// Resolved also selects what was replayed or discarded.
	Resolved bool
}

// Letters are the use cases of dead letters. Its fields are set once.
type Letters struct {
	// Log is the audit log: lists are read from it.
	Log Log
	// Store is the event log: decisions are made on it and appended to it.
	Store interface {
		aggregate.Loader
		store.Appender
	}
	// Changes tells, until stop, when some letter has changed; it may miss changes.
	Changes func() (changed <-chan struct{}, stop func(), err error)
}

// Find returns the letters that match, oldest first, and how many are open of each service.
func (s *Letters) Find(ctx context.Context, f LetterFilter) (found []Letter, open map[string]int64, err error) {
	all, err := s.all(ctx)
	if err != nil {
		return nil, nil, err
	}
	open = map[string]int64{}
	for _, l := range all {
		if l.State.Open() {
			open[l.Service]++
		}
	}
	found, err = f.pick(all)
	return found, open, err
}

// pick returns the letters that match.
func (f LetterFilter) pick(all []Letter) (found []Letter, err error) {
	if len(f.IDs) > 0 {
		if all, err = named(all, f.IDs); err != nil {
			return nil, err
		}
	}
	for _, l := range all {
		if f.matches(l) {
			found = append(found, l)
		}
	}
	return found, nil
}

// current is all, with the open ones as the log has them now: the audit log may
// be a moment behind.
func (s *Letters) current(ctx context.Context) ([]Letter, error) {
	all, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	for i, l := range all {
		if !l.State.Open() {
			continue
		}
		if all[i].Letter, err = aggregate.LoadDeadLetter(ctx, s.Store, l.ID); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// all folds every letter, in the order of what they are about.
func (s *Letters) all(ctx context.Context) ([]Letter, error) {
	events, more, err := s.Log.Search(ctx, Filter{Stream: event.Stream{Type: catalogue.DeadLetter}}, Page{Ascending: true, Limit: maxLetterEvents})
	if err != nil {
		return nil, fmt.Errorf("read the dead letters: %w", err)
	}
	if more {
		return nil, fault.New(fault.Exhausted, "there are more than %d events of dead letters", maxLetterEvents).
			WithCode("TOO_MANY_DEAD_LETTERS", "search them in pages: `hodei audit search --type DeadLetterRecorded`")
	}
	index := map[string]int{}
	var all []Letter
	for _, e := range events {
		i, ok := index[e.Stream.ID]
		if !ok {
			i = len(all)
			index[e.Stream.ID] = i
			all = append(all, Letter{CorrelationID: e.CorrelationID, Namespace: e.Namespace})
		}
		if all[i].Letter, err = aggregate.EvolveDeadLetter(all[i].Letter, e); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all, func(a, b Letter) int { return cmp.Compare(a.Position, b.Position) })
	return all, nil
}

// named picks one letter for each id or beginning of one.
func named(all []Letter, ids []string) ([]Letter, error) {
	picked := map[string]bool{}
	for _, id := range ids {
		var matches []string
		for _, l := range all {
			if id != "" && strings.HasPrefix(l.ID, strings.ToLower(id)) {
				matches = append(matches, l.ID)
			}
		}
		switch len(matches) {
		case 0:
			return nil, fault.New(fault.NotFound, "there is no dead letter whose id is, or begins with, %q", clip(id)).
				WithCode("DEAD_LETTER_NOT_FOUND", "list what there is: `hodei dlq list --resolved`")
		case 1:
			picked[matches[0]] = true
		default:
			return nil, wrong("ids", "%q is not unique, give more of it: it matches %s", clip(id), strings.Join(matches[:min(len(matches), shown)], ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(l Letter) bool { return !picked[l.ID] }), nil
}

func (f LetterFilter) matches(l Letter) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return (f.Resolved || len(f.IDs) > 0 || l.State.Open()) && is(f.Service, l.Service) && is(f.Type, l.OriginalType) &&
		is(f.Aggregate, l.Aggregate) && is(f.CorrelationID, l.CorrelationID) && is(f.Fingerprint, l.Fingerprint) &&
		!l.RecordedAt.Before(f.Since) && (f.Until.IsZero() || l.RecordedAt.Before(f.Until))
}

// Operation is what an operator wants done with the letters of a filter.
type Operation struct {
	Filter LetterFilter
	// Discard gives them up; else they are replayed, with Data instead of their own
	// where it is set (of one letter only).
	Discard, WithParked bool
	Data                []byte
	Reason              string
	// DryRun only says what would be done. NoWait does not wait for what services answer.
	DryRun, NoWait bool
	// Pace is called before each letter and returns when it is its turn.
	Pace func(ctx context.Context) error
	// Meta is whose call it is.
	Meta event.Meta
}

// The outcomes of an operation on one letter.
const (
	Replayed   = "REPLAYED"
	Failed     = "FAILED_AGAIN"
	Requested  = "REQUESTED"
	GivenUp    = "DISCARDED"
	WouldBe    = "WOULD_REPLAY"
	WouldGo    = "WOULD_DISCARD"
	Skipped    = "SKIPPED"
	Unanswered = "UNANSWERED"
)

// Outcome is what became of one letter; Done of Total are through.
type Outcome struct {
	Letter      Letter
	Result      string
	Detail      string
	Done, Total int
}

// Run carries an operation out, letter by letter in the order of the log, and
// reports each. Of one aggregate a later letter is replayed only after an earlier
// one was: so its order is kept. It ends when ctx does: what was asked for by then
// is in the log and will be carried out.
func (s *Letters) Run(ctx context.Context, op Operation, report func(Outcome) error) error {
	everything, err := s.current(ctx)
	if err != nil {
		return err
	}
	found, err := op.Filter.pick(everything)
	if err != nil {
		return err
	}
	if len(op.Data) > 0 {
		if len(found) != 1 {
			return wrong("data", "edits one dead letter, but %d match: give its id", len(found))
		}
		if err := catalogue.Validate(found[0].OriginalType, found[0].OriginalVersion, op.Data); err != nil {
			return err
		}
	}
	held := map[string]string{} // consumer and aggregate: the letter that comes first
	for i, l := range found {
		out := Outcome{Letter: l, Done: i + 1, Total: len(found)}
		key := l.Consumer + " " + l.Aggregate
		if first := firstOpen(everything, l); !op.Discard && first != "" && held[key] == "" && !selected(found[:i], first) {
			held[key] = first
		}
		switch {
		case !op.Discard && held[key] != "" && l.Aggregate != "":
			out.Result, out.Detail = Skipped, fmt.Sprintf("dead letter %s of the same aggregate comes first", held[key])
		default:
			if err := op.Pace(ctx); err != nil {
				return err
			}
			out, err = s.one(ctx, op, out)
			if err != nil {
				return err
			}
		}
		if out.Result != Replayed && out.Result != WouldBe && held[key] == "" {
			held[key] = l.ID
		}
		if err := report(out); err != nil {
			return err
		}
	}
	return nil
}

// firstOpen is an open letter of the same consumer and aggregate that comes before l.
func firstOpen(all []Letter, l Letter) string {
	for _, o := range all {
		if o.Position < l.Position && o.State.Open() && o.Consumer == l.Consumer && o.Aggregate == l.Aggregate && l.Aggregate != "" {
			return o.ID
		}
	}
	return ""
}

func selected(found []Letter, id string) bool {
	return slices.ContainsFunc(found, func(l Letter) bool { return l.ID == id })
}

// one decides about one letter as the log has it now.
func (s *Letters) one(ctx context.Context, op Operation, out Outcome) (Outcome, error) {
	changed, stop, err := s.Changes() // before the decision, so that its answer is heard
	if err != nil {
		return out, err
	}
	defer stop()
	now, err := aggregate.LoadDeadLetter(ctx, s.Store, out.Letter.ID)
	if err != nil {
		return out, err
	}
	var facts []deadletter.Event
	if op.Discard {
		facts, err = now.Discard(op.Meta.Actor, op.Reason, op.WithParked)
	} else {
		facts, err = now.RequestReplay(op.Meta.Actor, op.Reason, op.Data)
	}
	switch {
	case err != nil && (errors.Is(err, fault.Precondition) || errors.Is(err, fault.Invalid)):
		if out.Total == 1 {
			return out, err
		}
		out.Result, out.Detail = Skipped, err.Error()
		return out, nil
	case err != nil:
		return out, err
	case op.DryRun && op.Discard:
		out.Result = WouldGo
		return out, nil
	case op.DryRun:
		out.Result = WouldBe
		return out, nil
	}
	meta := op.Meta
	meta.Namespace = out.Letter.Namespace
	change, err := aggregate.DeadLetterChange(now, meta, facts)
	if err != nil {
		return out, err
	}
	if _, err := s.Store.Append(ctx, store.Append{Changes: []store.Change{change}}); err != nil {
		return out, fmt.Errorf("decide about dead letter %s: %w", now.ID, err)
	}
	switch {
	case op.Discard:
		out.Letter.State, out.Result = deadletter.StateDiscarded, GivenUp
		return out, nil
	case op.NoWait:
		out.Letter.State, out.Result, out.Detail = deadletter.StateReplaying, Requested, out.Letter.Service+" replays it when it can"
		return out, nil
	}
	return s.await(ctx, out, changed)
}

// await waits until the service has answered a replay, but not for ever.
func (s *Letters) await(ctx context.Context, out Outcome, changed <-chan struct{}) (Outcome, error) {
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	enough := time.NewTimer(answerWithin)
	defer enough.Stop()
	for {
		now, err := aggregate.LoadDeadLetter(ctx, s.Store, out.Letter.ID)
		switch {
		case err != nil:
			return out, err
		case now.State == deadletter.StateReplayed:
			out.Letter.Letter, out.Result = now, Replayed
			if now.Unparked > 0 {
				out.Detail = fmt.Sprintf("with %d that waited behind it", now.Unparked)
			}
			return out, nil
		case now.State == deadletter.StateDead:
			out.Letter.Letter, out.Result, out.Detail = now, Failed, now.Error
			return out, nil
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return out, ctx.Err()
		case <-enough.C:
			out.Letter.State, out.Result = deadletter.StateReplaying, Unanswered
			out.Detail = out.Letter.Service + " has not answered yet; the replay is in the log and is done when it is up"
			return out, nil
		}
	}
}
