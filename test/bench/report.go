package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figures are what `hodei bench -o json` prints: the medians of its runs, and each.
type figures struct {
	Jobs int `json:"jobs"`
	run
	Runs []run `json:"runs"`
}

type run struct {
	SubmitPerS float64   `json:"submit_per_s"`
	DonePerS   float64   `json:"done_per_s"`
	AckMS      latencies `json:"ack_ms"`
	RunningMS  latencies `json:"running_ms"`
	EventsPerS struct {
		Appended  float64 `json:"appended"`
		Published float64 `json:"published"`
		Audited   float64 `json:"audited"`
	} `json:"events_per_s"`
	Failed      int     `json:"failed"`
	LagEnd      int64   `json:"lag_end"`
	CPUMSPerJob float64 `json:"cpu_ms_per_job"`
}

type latencies struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

func submitted(r run) float64  { return r.SubmitPerS }
func done(r run) float64       { return r.DonePerS }
func ackP50(r run) float64     { return r.AckMS.P50 }
func runningP50(r run) float64 { return r.RunningMS.P50 }
func runningP99(r run) float64 { return r.RunningMS.P99 }
func cpuPerJob(r run) float64  { return r.CPUMSPerJob }

// figure is a median, with the least and the most of its runs.
type figure struct{ median, least, most float64 }

func one(v float64) figure { return figure{v, v, v} }

func (f *figures) of(value func(run) float64) figure {
	var all []float64
	for _, r := range f.Runs {
		all = append(all, value(r))
	}
	return figure{value(f.run), slices.Min(all), slices.Max(all)}
}

func (f figure) String() string {
	if f.least == f.most {
		return number(f.median)
	}
	return number(f.median) + " (" + number(f.least) + " – " + number(f.most) + ")"
}

// number has as many digits as say something.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// report is the table of everything that was measured.
type report struct {
	head, rows strings.Builder
	load       string
}

func (r *report) begin(short bool) {
	commit := "an unknown commit"
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		commit = "commit " + strings.TrimSpace(string(out))
	}
	command := "make bench"
	if short {
		command = "make bench BENCH=-short"
	}
	r.load = loadAverage()
	fmt.Fprintf(&r.head, "Measured on %s at %s with `%s`: %s, %d cores, everything on one machine, Postgres with fsync on.\n",
		time.Now().UTC().Format("2006-01-02 15:04 MST"), commit, command, runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU())
}

// end says how busy the machine was, which is half of what the figures mean.
func (r *report) end() {
	if r.load != "" {
		fmt.Fprintf(&r.head, "Load average (1, 5, 15 min) when it began: %s. More than about 0.5 means that somebody else used the machine, too.\n", r.load)
	}
}

func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(raw))[:3], ", ")
}

// add adds a line; without a target there is nothing to reach.
func (r *report) add(scenario, what, target string, f figure, reached bool) {
	verdict := ""
	switch {
	case target == "":
	case reached:
		verdict = "reached"
	default:
		verdict = "**missed**"
	}
	fmt.Fprintf(&r.rows, "| %s | %s | %s | %s | %s |\n", scenario, what, f, target, verdict)
}

func (r *report) String() string {
	return r.head.String() + "\n| scenario | figure | median (least – most) | target | |\n|---|---|---|---|---|\n" + r.rows.String()
}

// The part of the page that is written by this program.
const (
	from = "<!-- figures: make bench writes what is between here -->\n"
	to   = "<!-- and here -->\n"
)

// into puts the report into a page, between its markers.
func (r *report) into(file string) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(page), from)
	_, after, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the figures: it needs the lines %q and %q", file, from, to)
	}
	return os.WriteFile(file, []byte(before+from+"\n"+r.String()+"\n"+to+after), 0o644)
}
