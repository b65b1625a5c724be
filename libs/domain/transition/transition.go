// Package transition holds state machines as data: which state may follow which,
// and the one event that carries each step. A table decides; nothing else does.
package transition

import (
	"fmt"
	"slices"
	"strings"

	"hodei.dev/libs/domain/fault"
)

// Rule is one legal step and the event type that carries it.
type Rule[S ~string] struct {
	// From is empty for the step that creates the aggregate.
	From, To S
	// Event is the only event type that makes the step.
	Event string
	// Unused marks a step that is legal but that the product never takes.
	Unused bool
}

// Table is a state machine. It is immutable once made and safe for concurrent use.
type Table[S ~string] struct {
	// Aggregate is what the machine is of, such as "job".
	Aggregate string
	// States lists all states in the order of a life.
	States []S
	// Rules lists all legal steps.
	Rules []Rule[S]
}

// Check returns nil where the step is legal, else an *[Error] that names id.
// The same state again is never legal.
func (t Table[S]) Check(id string, from, to S) error {
	if _, ok := t.Event(from, to); ok {
		return nil
	}
	return &Error{Aggregate: t.Aggregate, ID: id, From: string(from), To: string(to), Legal: t.next(from)}
}

// Event returns the type of the event that carries the step, if the step is legal.
func (t Table[S]) Event(from, to S) (string, bool) {
	for _, r := range t.Rules {
		if r.From == from && r.To == to {
			return r.Event, true
		}
	}
	return "", false
}

// Terminal tells whether nothing follows s.
func (t Table[S]) Terminal(s S) bool { return len(t.next(s)) == 0 && slices.Contains(t.States, s) }

// Known tells whether s is a state of the table.
func (t Table[S]) Known(s S) bool { return slices.Contains(t.States, s) }

func (t Table[S]) next(from S) []string {
	var out []string
	for _, r := range t.Rules {
		if r.From == from {
			out = append(out, string(r.To))
		}
	}
	return out
}

// Mermaid draws the machine as a Mermaid state diagram.
func (t Table[S]) Mermaid() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	for _, r := range t.Rules {
		from := string(r.From)
		if from == "" {
			from = "[*]"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", from, r.To, r.Event)
	}
	for _, s := range t.States {
		if t.Terminal(s) {
			fmt.Fprintf(&b, "    %s --> [*]\n", s)
		}
	}
	return b.String()
}

// Markdown lists the machine as a table: from, to, event.
func (t Table[S]) Markdown() string {
	var b strings.Builder
	b.WriteString("| from | to | event |\n|---|---|---|\n")
	for _, r := range t.Rules {
		from, note := string(r.From), ""
		if from == "" {
			from = "(new)"
		}
		if r.Unused {
			note = " (legal; the product never takes it)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s%s |\n", from, r.To, r.Event, note)
	}
	return b.String()
}

// Error is a step that the table does not have. It is a fault.Precondition.
type Error struct {
	Aggregate, ID, From, To string
	// Legal lists what may follow From; empty when From is terminal.
	Legal []string
}

// Error names the aggregate, the state it was in and the state asked for.
func (e *Error) Error() string {
	legal := "it is terminal"
	if len(e.Legal) > 0 {
		legal = "legal from there: " + strings.Join(e.Legal, ", ")
	}
	return fmt.Sprintf("%s %s is %s and cannot become %s (%s)", e.Aggregate, e.ID, e.From, e.To, legal)
}

// Is reports whether target is fault.Precondition.
func (e *Error) Is(target error) bool { return target == fault.Precondition }
