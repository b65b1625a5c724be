package compare

import (
	"fmt"

	"hodei.dev/libs/eventing/relay"
)

// The weights of a finding.
const (
	Error   = "error"
	Warning = "warning"
)

// The checks that findings belong to.
const (
	CheckLog        = "event log"
	CheckStream     = "events stream"
	CheckAggregates = "aggregates"
	CheckPositions  = "positions"
)

// Finding is one thing that is off.
type Finding struct{ Check, Severity, Subject, Problem, Action string }

// kinds says what each kind of difference means. A tombstone is none: it has a dead
// letter, which is open until somebody has seen it.
var kinds = []struct {
	kind                             relay.Kind
	check, severity, problem, action string
}{
	{
		relay.Gap, CheckLog, Error, "%d positions are missing inside the log",
		"rows were removed from hodei.events: restore them from a backup; `hodei audit search` shows what the ledger still knows",
	},
	{
		relay.Damaged, CheckLog, Error, "the data of %d events does not have the digest that was stored with it",
		"somebody or a disk has changed the log: compare with a backup before anything else",
	},
	{
		relay.Beyond, CheckStream, Error, "the stream has %d events above the log's head: Postgres has lost its tail",
		"if a newer Postgres exists, restore that; else `hodei doctor --new-epoch` goes on with what the log has",
	},
	{
		relay.Different, CheckStream, Error, "at %d positions the stream has another event than the log: Postgres was taken back and has gone on",
		"if the other Postgres exists, decide which is right; to go on with this log: `hodei doctor --new-epoch`",
	},
	{
		relay.Missing, CheckStream, Warning, "%d messages were deleted from inside the stream",
		"nothing is lost: consumers read them from the log; find out who deletes from HODEI_EVENTS",
	},
}

// Findings says in words what is off.
func (s State) Findings() []Finding {
	var out []Finding
	for _, k := range kinds {
		if n := s.Counts[k.kind]; n > 0 {
			out = append(out, Finding{Check: k.check, Severity: k.severity, Subject: s.first(k.kind), Problem: fmt.Sprintf(k.problem, n), Action: k.action})
		}
	}
	if s.Stream.Created.IsZero() {
		out = append(out, Finding{
			Check: CheckStream, Severity: Error, Problem: "there is no events stream",
			Action: "the relay makes it as soon as it is ready: see why it is not with `hodei status`",
		})
	}
	if s.Mismatched > 0 {
		m := s.Mismatches[0]
		out = append(out, Finding{
			Check: CheckAggregates, Severity: Error, Subject: m.Stream.String(),
			Problem: fmt.Sprintf("the current state of %d aggregates contradicts their events (this one: version %d, %d events up to version %d)", s.Mismatched, m.Version, m.Events, m.Last),
			Action:  "the log was changed by hand: compare with a backup; appends to these aggregates are refused",
		})
	}
	for _, p := range s.Positions {
		if p.Position > s.LogHead {
			out = append(out, Finding{
				Check: CheckPositions, Severity: Error, Subject: p.Schema + "/" + p.Name,
				Problem: fmt.Sprintf("it has handled position %d, but the log ends at %d: the log has lost its tail", p.Position, s.LogHead),
				Action:  "its tables hold events that there are none of: restore schema " + p.Schema + " with the log, or rebuild it",
			})
		}
	}
	return out
}

// first names the first listed position of a kind.
func (s State) first(kind relay.Kind) string {
	for _, d := range s.First {
		if d.Kind == kind {
			return fmt.Sprintf("from position %d", d.Position)
		}
	}
	return ""
}

// Agrees reports whether nothing in the stream contradicts the log, as far as was looked.
func (s State) Agrees() bool {
	return s.Counts[relay.Different]+s.Counts[relay.Beyond] == 0 && !s.Stream.Created.IsZero()
}
