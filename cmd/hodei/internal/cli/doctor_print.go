package cli

import (
	"fmt"
	"strings"

	"hodei.dev/cmd/hodei/internal/render"
)

// diagnosis prints the checks and ends with the code that they deserve.
func (a *app) diagnosis(d *examination) error {
	checks := d.checks()
	off, unasked := 0, 0
	for _, c := range checks {
		switch c.Verdict {
		case verdictOff:
			off++
		case verdictUnknown:
			unasked++
		}
	}
	print := a.diagnosisText
	if a.json() {
		print = a.diagnosisJSON
	}
	if err := print(d, checks, off, unasked); err != nil {
		return err
	}
	switch {
	case off > 0:
		return exitError(exitFailed)
	case unasked > 0:
		return exitError(exitUnreachable)
	}
	return nil
}

func (a *app) diagnosisJSON(d *examination, checks []check, off, unasked int) error {
	var comparison rawJSON = []byte("null")
	if d.comparison != nil {
		comparison = render.Compact(d.comparison)
	}
	data, err := marshal(struct {
		Well       bool    `json:"well"`
		Checks     []check `json:"checks"`
		Comparison rawJSON `json:"comparison"`
	}{off+unasked == 0, checks, comparison})
	if err != nil {
		return err
	}
	return render.Raw(a.out, data)
}

func (a *app) diagnosisText(d *examination, checks []check, off, unasked int) error {
	t := render.NewTable(a.out, "CHECK", "VERDICT", "FOUND")
	for _, c := range checks {
		t.Add(c.Name, c.Verdict, c.Found)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	for _, c := range checks {
		for _, f := range c.Findings {
			subject := ""
			if f.Subject != "" {
				subject = f.Subject + ": "
			}
			fmt.Fprintf(&b, "\n%s (%s): %s\n", c.Name, f.Severity, render.Plain(subject+f.Problem))
			if f.Action != "" {
				fmt.Fprintf(&b, "  what to do: %s\n", render.Plain(f.Action))
			}
		}
	}
	if list := d.comparison.GetDifferences(); len(list) > 0 {
		b.WriteString("\nthe first differences between log and stream:\n")
		for _, m := range list {
			fmt.Fprintf(&b, "  %d  %s  %s\n", m.GetPosition(), m.GetKind(), render.Plain(strings.TrimSpace(m.GetType()+" "+m.GetAggregate()+"  "+m.GetDetail())))
		}
	}
	switch {
	case off > 0:
		fmt.Fprintf(&b, "\n%d of %d checks are off\n", off, len(checks))
	case unasked > 0:
		fmt.Fprintf(&b, "\n%d of %d checks could not be made\n", unasked, len(checks))
	default:
		b.WriteString("\nall is well\n")
	}
	_, err := fmt.Fprint(a.out, b.String())
	return err
}
