package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	platformv1 "hodei.dev/proto/hodei/platform/v1"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
)

// The verdicts of a check.
const (
	verdictOK      = "ok"
	verdictOff     = "off"
	verdictUnknown = "unknown"
)

// The checks, in the order in which they are printed.
const (
	checkServices    = "services"
	checkLags        = "lags"
	checkLog         = "event log"
	checkStream      = "events stream"
	checkAggregates  = "aggregates"
	checkPositions   = "positions"
	checkDeadlines   = "deadlines"
	checkBreakers    = "breakers"
	checkDeadLetters = "dead letters"
)

// check is one thing that was looked at.
type check struct {
	Name    string `json:"name"`
	Verdict string `json:"verdict"`
	// Found is what was seen, in one line.
	Found    string    `json:"found"`
	Findings []finding `json:"findings,omitempty"`
}

// finding is one thing that is off, and what to do about it.
type finding struct {
	Severity string `json:"severity"`
	Subject  string `json:"subject,omitempty"`
	Problem  string `json:"problem"`
	Action   string `json:"action,omitempty"`
}

// checks judges what was told.
func (d *examination) checks() []check {
	all := []check{d.services(), d.lags()}
	all = append(all, d.compared()...)
	all = append(all, d.deadlines(), d.breakers(), d.letters())
	known := map[string]int{}
	for i, c := range all {
		known[c.Name] = i
	}
	// What services and the comparison have found goes to its check; what is new here
	// is a check of its own.
	for _, f := range d.findings() {
		i, ok := known[f.GetCheck()]
		if !ok {
			i = len(all)
			known[f.GetCheck()] = i
			all = append(all, check{Name: f.GetCheck()})
		}
		all[i].Findings = append(all[i].Findings, finding{Severity: f.GetSeverity(), Subject: f.GetSubject(), Problem: f.GetProblem(), Action: f.GetAction()})
	}
	for i, c := range all {
		switch {
		case len(c.Findings) > 0:
			all[i].Verdict = verdictOff
		case c.Verdict == "":
			all[i].Verdict = verdictOK
		}
		if c.Found == "" && len(c.Findings) > 0 {
			all[i].Found = c.Findings[0].Problem
		}
	}
	return all
}

func (d *examination) findings() []*platformv1.Finding {
	out := append([]*platformv1.Finding(nil), d.comparison.GetFindings()...)
	for _, s := range d.first {
		out = append(out, s.GetFindings()...)
	}
	return out
}

func (d *examination) services() check {
	c := check{Name: checkServices}
	if why, ok := d.unasked["services"]; ok {
		return unknown(c.Name, why)
	}
	ready := 0
	for _, s := range d.second {
		state := stateOfService(s)
		switch {
		case s.GetUnreachable():
			c.Findings = append(c.Findings, finding{"error", s.GetName(), state, "start it, or see why it has ended in its log; the gateway's *_address says where it is looked for"})
		case !s.GetReady():
			c.Findings = append(c.Findings, finding{"error", s.GetName(), state, advise(s)})
		case len(s.GetProblems()) > toldElsewhere(s):
			c.Findings = append(c.Findings, finding{"warning", s.GetName(), state, advise(s)})
			ready++
		default:
			ready++
		}
	}
	c.Found = fmt.Sprintf("%d of %d ready", ready, len(d.second))
	return c
}

// advise says what to do about a service's problems.
func advise(s *platformv1.ServiceStatus) string {
	text := strings.ToLower(stateOfService(s))
	switch {
	case strings.Contains(text, "schema"):
		return "bring the database up to date: `hodei migrate`"
	case strings.Contains(text, "diverged"), strings.Contains(text, "lost its tail"), strings.Contains(text, "stream and log differ"):
		return "see the check of the events stream"
	default:
		return "it tries again by itself; see its log for what it waits for"
	}
}

func (d *examination) lags() check {
	c := check{Name: checkLags, Found: "all caught up"}
	if why, ok := d.unasked["services"]; ok {
		return unknown(c.Name, why)
	}
	before := map[string]int64{}
	for _, s := range d.first {
		before[s.GetName()] = s.GetPosition()
	}
	var catching []string
	for _, s := range d.second {
		switch {
		case s.GetLag() <= 0 || s.GetUnreachable():
		case s.GetPosition() > before[s.GetName()]:
			catching = append(catching, fmt.Sprintf("%s %d", s.GetName(), s.GetLag()))
		default:
			c.Findings = append(c.Findings, finding{"error", s.GetName(), fmt.Sprintf("it is %d events behind and stands at position %d", s.GetLag(), s.GetPosition()), "see its log and `hodei status`; a restart of the service makes its consumer anew"})
		}
	}
	if len(catching) > 0 {
		c.Found = "catching up: " + strings.Join(catching, ", ")
	}
	if len(c.Findings) > 0 {
		c.Found = fmt.Sprintf("%d stand still", len(c.Findings))
	}
	return c
}

// compared is what the relay's comparison says.
func (d *examination) compared() []check {
	names := []string{checkLog, checkStream, checkAggregates, checkPositions}
	if why, ok := d.unasked["comparison"]; ok {
		out := make([]check, len(names))
		for i, name := range names {
			out[i] = unknown(name, why)
		}
		return out
	}
	m := d.comparison
	log := check{Name: checkLog, Found: fmt.Sprintf("%d positions, no gap, every digest right", m.GetLogHead())}
	aggregates := check{Name: checkAggregates, Found: "versions and current states agree with the events"}
	if m.GetQuick() {
		log.Found, aggregates.Found = fmt.Sprintf("ends at position %d; samples only", m.GetLogHead()), "not looked at: --quick"
	}
	if n := m.GetCounts()["gap"] + m.GetCounts()["damaged"]; n > 0 {
		log.Found = fmt.Sprintf("%d of %d positions are not as they were written", n, m.GetLogHead())
	}
	if m.GetMismatched() > 0 {
		aggregates.Found = fmt.Sprintf("%d contradict their events", m.GetMismatched())
	}
	return []check{log, d.stream(m), aggregates, positions(m)}
}

func (d *examination) stream(m *relayv1.Comparison) check {
	c := check{Name: checkStream, Found: fmt.Sprintf("positions %d to %d, %d compared", m.GetStreamFirst(), m.GetStreamHead(), m.GetCompared())}
	if m.GetStreamCreated() == nil {
		c.Found = "there is none"
	}
	if n := m.GetExpired(); n > 0 {
		c.Found += fmt.Sprintf(", %d older only in the log", n)
	}
	if n := m.GetUnpublished(); n > 0 {
		c.Found += fmt.Sprintf(", %d on their way", n)
	}
	for _, k := range sortedKeys(m.GetCounts()) {
		c.Found += fmt.Sprintf(", %s %d", k, m.GetCounts()[k])
	}
	return c
}

func positions(m *relayv1.Comparison) check {
	c := check{Name: checkPositions, Found: fmt.Sprintf("%d stored", len(m.GetPositions()))}
	for _, p := range m.GetPositions() {
		c.Found += fmt.Sprintf(", %s %d", p.GetName(), p.GetPosition())
	}
	return c
}

func (d *examination) deadlines() check {
	for _, s := range d.first {
		armed, ok := s.GetFigures()["armed"]
		if !ok {
			continue
		}
		return check{Name: checkDeadlines, Found: fmt.Sprintf("%d armed, %d overdue, %d unwatched", armed, s.GetFigures()["overdue"], s.GetFigures()["unwatched"])}
	}
	return unknown(checkDeadlines, "no timeout-monitor is active")
}

func (d *examination) breakers() check {
	for _, s := range d.first {
		open, ok := s.GetFigures()["circuits_open"]
		if !ok {
			continue
		}
		c := check{Name: checkBreakers, Found: "none open"}
		if open > 0 {
			c.Found = fmt.Sprintf("%d open", open)
		}
		return c
	}
	return unknown(checkBreakers, "no dispatcher is active")
}

// elsewhere begins the problems in a service's status that other checks tell of:
// breakers and dead letters.
var elsewhere = []string{"circuit of ", "dead letters of "}

// toldElsewhere is how many of a service's problems other checks tell of.
func toldElsewhere(s *platformv1.ServiceStatus) (n int) {
	for name := range s.GetProblems() {
		if slices.ContainsFunc(elsewhere, func(begin string) bool { return strings.HasPrefix(name, begin) }) {
			n++
		}
	}
	return n
}

func (d *examination) letters() check {
	if why, ok := d.unasked[checkDeadLetters]; ok {
		return unknown(checkDeadLetters, why)
	}
	c := check{Name: checkDeadLetters, Found: "none"}
	all := maps.Clone(d.deadLetters)
	if all == nil {
		all = map[string]int64{}
	}
	for _, s := range d.first {
		// They count in the event log, of which the audit log may be a moment behind.
		all[s.GetName()] = max(all[s.GetName()], s.GetDeadLetters())
	}
	if text := figures(all); text != "" {
		c.Found = text
		c.Findings = append(c.Findings, finding{"warning", "", "events that services could not handle: " + text, "see them and their errors: `hodei dlq list`"})
	}
	return c
}

func unknown(name, why string) check { return check{Name: name, Verdict: verdictUnknown, Found: why} }
