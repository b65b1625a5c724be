package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

func (o outcome) print(log func(string, ...any), again string) {
	if o.err != nil {
		log("could not be carried out: %v (%s)", o.err, again)
		return
	}
	v := o.verdict
	for _, state := range slices.Sorted(maps.Keys(v.timeouts)) {
		log("deadline of %s fired %d times", state, v.timeouts[state])
	}
	if !v.bad() {
		log("passed: %d jobs, %d faults, %d events", o.jobs, len(o.faults), v.events)
		return
	}
	findings := v.findings()
	for _, f := range findings[:min(len(findings), 40)] {
		log("FOUND %s", f)
	}
	log("FAILED with %d findings; again: %s; logs and journal: %s\n%s", len(findings), again, o.dir, v.story)
}

// sum prints the table of faults and the last line; its error is that something does not hold.
func (c *campaign) sum(outcomes []outcome, took time.Duration) error {
	var jobs, faults, lost, doubled, stuck, leaked, events int
	var seeds []string
	bad := false
	rows, fired := map[string]*row{}, map[string]int{}
	for _, o := range outcomes {
		jobs += o.jobs
		faults += len(o.faults)
		events += o.verdict.events
		lost += len(o.verdict.lost)
		doubled += len(o.verdict.doubled)
		stuck += len(o.verdict.stuck)
		leaked += len(o.verdict.leaked)
		bad = bad || o.bad()
		seeds = append(seeds, fmt.Sprint(o.plan.seed))
		for state, n := range o.verdict.timeouts {
			fired[state] += n
		}
		for name, faults := range bySort(o.faults) {
			if rows[name] == nil {
				rows[name] = &row{}
			}
			rows[name].add(faults, o.verdict)
		}
	}
	table := table(rows) + "\n" + deadlines(fired)
	fmt.Printf("\n%s\n", table)
	line := fmt.Sprintf("chaos: plans=%d jobs=%d faults=%d lost=%d doubled=%d stuck=%d leaked=%d seeds=%s",
		len(outcomes), jobs, faults, lost, doubled, stuck, leaked, strings.Join(seeds, ","))
	var err error
	if c.report != "" {
		head := fmt.Sprintf("`make chaos SEEDS=%s DURATION=%s RATE=%g NODES=%d PARALLEL=%d%s` on %s, commit %s, %d cores, %s in all: %d jobs, %d events.\n\n`%s`\n\n",
			strings.Join(seeds, ","), c.lasts, c.rate, c.nodes, c.parallel, c.more(), time.Now().Format(time.DateOnly), commit(), runtime.NumCPU(), took.Round(time.Second), jobs, events, line)
		err = into(c.report, c.name(), head+table)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	if bad {
		fmt.Fprintln(os.Stderr, "chaos: not everything holds: see above")
	}
	fmt.Println(line)
	if bad || err != nil {
		return errFailed
	}
	return nil
}

// errFailed says that everything has been said: the last line is the count.
var errFailed = errors.New("failed")

// row is what became of all faults of one sort. lost and doubled are the findings of
// the plans that had one.
type row struct {
	times, lost, doubled int
	took                 []time.Duration
}

func (r *row) add(faults []*injected, v verdict) {
	r.times += len(faults)
	r.lost += len(v.lost)
	r.doubled += len(v.doubled)
	for _, f := range faults {
		if f.recovered > 0 {
			r.took = append(r.took, f.recovered)
		}
	}
}

func bySort(faults []*injected) map[string][]*injected {
	out := map[string][]*injected{}
	for _, f := range faults {
		out[f.what] = append(out[f.what], f)
	}
	return out
}

// deadlines says which have fired, by the state that lasted too long.
func deadlines(fired map[string]int) string {
	var all []string
	for _, state := range slices.Sorted(maps.Keys(fired)) {
		all = append(all, fmt.Sprintf("%s %d", state, fired[state]))
	}
	if len(all) == 0 {
		return "No deadline has fired.\n"
	}
	return "Deadlines that have fired: " + strings.Join(all, ", ") + ".\n"
}

// table has a row for each sort of fault, in the order of sorts.
func table(rows map[string]*row) string {
	var b strings.Builder
	b.WriteString("| fault | times | recovery p50, s | p99 | max | lost | doubled | measured |\n|---|---|---|---|---|---|---|---|\n")
	for _, s := range sorts {
		r := rows[s.name]
		if r == nil {
			continue
		}
		slices.Sort(r.took)
		what := "its end → a new job has ended"
		if s.hits {
			what = fmt.Sprintf("its beginning → the job is queued again (%d of %d: the others went on)", len(r.took), r.times)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %d | %d | %s |\n", s.name, r.times,
			quantile(r.took, 0.5), quantile(r.took, 0.99), quantile(r.took, 1), r.lost, r.doubled, what)
	}
	return b.String()
}

func quantile(sorted []time.Duration, q float64) string {
	if len(sorted) == 0 {
		return "–"
	}
	i := min(len(sorted)-1, int(q*float64(len(sorted))))
	return fmt.Sprintf("%.2f", sorted[i].Seconds())
}

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// into replaces what stands between the markers of a file.
func into(file, name, text string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- /"+name+" -->"
	before, rest, ok := strings.Cut(string(content), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers %q and %q", file, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(file, []byte(before+begin+"\n"+text+"\n"+end+after), 0o644)
}

// name is what the figures of such a campaign are called in the report.
func (c *campaign) name() string {
	if c.serial {
		return "chaos-serial"
	}
	return fmt.Sprintf("chaos-%d", c.nodes)
}
