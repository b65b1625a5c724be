package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// cores reads "2", "0.5" or "500m" as thousandths of a core.
func cores(s string) (int64, error) {
	number, factor := s, 1000.0
	if n, ok := strings.CutSuffix(s, "m"); ok {
		number, factor = n, 1
	}
	v, err := amount(number, factor)
	if err != nil {
		return 0, fmt.Errorf("%q: a number of cores such as 2, 0.5 or 500m", s)
	}
	return v, nil
}

// memoryUnits are tried in this order: the longer ones first.
var memoryUnits = []struct {
	suffix string
	factor float64
}{
	{"Ki", 1 << 10},
	{"Mi", 1 << 20},
	{"Gi", 1 << 30},
	{"Ti", 1 << 40},
	{"k", 1e3},
	{"K", 1e3},
	{"M", 1e6},
	{"G", 1e9},
	{"T", 1e12},
	{"", 1},
}

// memory reads "256Mi", "1G" or "1048576" as bytes.
func memory(s string) (int64, error) {
	text := strings.TrimSuffix(s, "B")
	for _, u := range memoryUnits {
		number, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		if v, err := amount(number, u.factor); err == nil {
			return v, nil
		}
		break
	}
	return 0, fmt.Errorf("%q: a number of bytes such as 256Mi, 1G or 1048576", s)
}

var errAmount = errors.New("not a whole, positive amount")

// amount is a decimal number times factor, which has to come out whole.
func amount(number string, factor float64) (int64, error) {
	if number == "" || strings.Trim(number, "0123456789.") != "" {
		return 0, errAmount
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, errAmount
	}
	product := v * factor
	whole := math.Round(product)
	if whole > 1<<62 || math.Abs(product-whole) > 1e-6*math.Max(1, factor/1e3) {
		return 0, errAmount
	}
	return int64(whole), nil
}

// moment reads RFC 3339, or a Go duration as so long before now.
func moment(flag, s string, now time.Time) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return timestamppb.New(t), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return nil, Usage("%s %q: a time such as 2026-05-01T12:00:00Z, or how long ago, such as 90s, 15m or 24h", flag, s)
	}
	return timestamppb.New(now.Add(-d)), nil
}

// pairs reads K=V, each once or more; the last one of a key counts.
func pairs(flag string, values []string) (map[string]string, error) {
	if len(values) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(values))
	for _, kv := range values {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, Usage("%s %q: KEY=VALUE", flag, kv)
		}
		out[k] = v
	}
	return out, nil
}

// readEnv reads a file of K=V lines into env. Empty lines and lines that begin
// with # are left out; values are taken as they are, quotes included.
func readEnv(r io.Reader, name string, env map[string]string) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if text := strings.TrimSpace(line); text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		k = strings.TrimSpace(k)
		if !ok || k == "" {
			return Usage("--env-file %s, line %d: KEY=VALUE", name, n)
		}
		env[k] = v
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading --env-file %s: %w", name, err)
	}
	return nil
}

// split takes apart what was given comma separated, repeated, or both.
func split(values []string) []string {
	var out []string
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
	}
	return out
}
