package render

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// gap separates columns.
const gap = "  "

// Table prints rows with aligned columns, page by page, so that a long list
// begins to appear at once. A column that grew stays wide. Made by [NewTable];
// not safe for concurrent use.
type Table struct {
	w       io.Writer
	widths  []int
	rows    [][]string
	printed bool
}

// NewTable returns a table with the given headings.
func NewTable(w io.Writer, headings ...string) *Table {
	return &Table{w: w, widths: make([]int, len(headings)), rows: [][]string{headings}}
}

// Add adds a row; missing cells are empty, and an empty cell is shown as "-".
func (t *Table) Add(cells ...string) {
	row := make([]string, len(t.widths))
	copy(row, cells)
	for i, c := range row {
		if row[i] = Plain(c); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// Flush prints what was added since the last one, the headings first. Without a
// row it prints nothing.
func (t *Table) Flush() error {
	if !t.printed && len(t.rows) == 1 {
		return nil
	}
	for _, row := range t.rows {
		for i, c := range row {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c)) + gap)
			}
		}
		b.WriteByte('\n')
	}
	t.rows, t.printed = nil, true
	_, err := io.WriteString(t.w, b.String())
	return err
}

// Plain returns s without anything that a terminal would obey: control characters
// and invalid UTF-8 are written as Go writes them in quotes.
func Plain(s string) string {
	if !strings.ContainsFunc(s, obeyed) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case obeyed(r):
			quoted := fmt.Sprintf("%q", r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// obeyed tells whether a terminal might do something with r instead of showing it.
func obeyed(r rune) bool {
	return unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r)
}
