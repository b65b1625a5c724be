package render

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Time is a time as people read it, in UTC to the second; empty where there is none.
func Time(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05Z")
}

// Age is how long before now t was, such as "3m12s"; empty where there is none. A
// time in the future, by a clock that differs, is "0s".
func Age(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return Duration(max(0, now.Sub(t.AsTime())))
}

// Between is how long it took from one time to another; empty where one is missing.
func Between(from, to *timestamppb.Timestamp) string {
	if from == nil || to == nil {
		return ""
	}
	return Duration(max(0, to.AsTime().Sub(from.AsTime())))
}

// Duration is d with two units at most, such as "850ms", "12s", "3m12s", "5h2m" or "12d".
func Duration(d time.Duration) string {
	day := 24 * time.Hour
	switch {
	case d < 0:
		return "-" + Duration(-d)
	case d == 0:
		return "0s"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < day:
		return pair(d, time.Hour, "h", time.Minute, "m")
	case d < 10*day:
		return pair(d, day, "d", time.Hour, "h")
	default:
		return strconv.Itoa(int(d/day)) + "d"
	}
}

func pair(d, large time.Duration, l string, small time.Duration, s string) string {
	out := strconv.Itoa(int(d/large)) + l
	if rest := d % large / small; rest > 0 {
		out += strconv.Itoa(int(rest)) + s
	}
	return out
}

// Bytes is n with a binary unit, such as "256Mi"; 0 is "0".
func Bytes(n int64) string {
	units := []string{"", "Ki", "Mi", "Gi", "Ti", "Pi"}
	v, i := float64(n), 0
	for i < len(units)-1 && (v >= 1024 || v <= -1024) {
		v, i = v/1024, i+1
	}
	return strconv.FormatFloat(float64(int64(v*10+0.5))/10, 'f', -1, 64) + units[i]
}

// Cores is a number of thousandths of a core, such as "500m" or "2".
func Cores(millis int64) string {
	if millis%1000 == 0 {
		return strconv.FormatInt(millis/1000, 10)
	}
	return strconv.FormatInt(millis, 10) + "m"
}

// Pairs is a map as "a=1 b=2", sorted by key.
func Pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, " ")
}

// Command is an argv as a shell would take it.
func Command(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\$&|;<>(){}*?[]#~`!") {
			words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// Sheet prints what is known of one thing, a name and its value a line; empty
// values are left out. The zero value is ready.
type Sheet struct {
	rows [][2]string
}

// Add adds a line, unless the value is empty.
func (s *Sheet) Add(name, format string, args ...any) {
	value := format
	if len(args) > 0 {
		value = fmt.Sprintf(format, args...)
	}
	if value != "" {
		s.rows = append(s.rows, [2]string{name, Plain(value)})
	}
}

// Print writes the lines.
func (s *Sheet) Print(w io.Writer) error {
	width := 0
	for _, r := range s.rows {
		width = max(width, utf8.RuneCountInString(r[0]))
	}
	var b strings.Builder
	for _, r := range s.rows {
		b.WriteString(r[0] + strings.Repeat(" ", width-utf8.RuneCountInString(r[0])) + gap + r[1] + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
