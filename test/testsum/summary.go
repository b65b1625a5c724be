package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`), and of the
// build events among them (`go help buildjson`).
type event struct {
	Action, Package, Test, Output string
	// ImportPath names the package of a build event.
	ImportPath string
	// FailedBuild is, in a package's fail event, the ImportPath whose build failed.
	FailedBuild string
	// Elapsed is in seconds.
	Elapsed float64
}

// summary counts tests and their subtests; a package that failed without a
// failing test (it did not build, it crashed, it ran out of time) counts as one.
type summary struct{ passed, failed, skipped int }

// run is what is known of the tests so far.
type run struct {
	out io.Writer
	summary
	// output holds what each test that has not ended, and each package (test ""), printed.
	output map[key]*strings.Builder
	// builds holds what the compiler said, by import path.
	builds map[string]*strings.Builder
	// failing and tests count the failing and all tests of a package.
	failing, tests  map[string]int
	failures, skips []string
}

type key struct{ pkg, test string }

// summarize reads events to the end and writes the report. A line that is no
// event (a tool's own message) is passed on as it is.
func summarize(in io.Reader, out io.Writer) (summary, error) {
	r := &run{
		out: out, output: map[key]*strings.Builder{}, builds: map[string]*strings.Builder{},
		failing: map[string]int{}, tests: map[string]int{},
	}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprint(out, string(line))
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return r.summary, fmt.Errorf("reading the test output: %w", err)
		}
	}
	r.report()
	return r.summary, nil
}

func (r *run) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		write(r.output, k, e.Output)
	case "build-output":
		write(r.builds, e.ImportPath, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
		delete(r.output, k)
	}
}

func (r *run) endTest(e event) {
	text := r.text(key{e.Package, e.Test})
	r.tests[e.Package]++
	switch e.Action {
	case "pass":
		r.passed++
	case "skip":
		r.skipped++
		r.skips = append(r.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(text)))
	case "fail":
		r.failed++
		r.failing[e.Package]++
		r.failures = append(r.failures, fmt.Sprintf("=== %s %s (%.2fs)\n%s", e.Package, e.Test, e.Elapsed, text))
	}
}

func (r *run) endPackage(e event) {
	switch {
	case e.Action == "skip" || e.Action == "pass" && r.tests[e.Package] == 0:
		return // no tests: not worth a line
	case e.Action == "pass":
		fmt.Fprintf(r.out, "ok    %-50s %7.2fs %5d tests\n", e.Package, e.Elapsed, r.tests[e.Package])
	default:
		fmt.Fprintf(r.out, "FAIL  %-50s %7.2fs %5d of %d tests\n", e.Package, e.Elapsed, r.failing[e.Package], r.tests[e.Package])
		if r.failing[e.Package] == 0 {
			r.failed++
			r.failures = append(r.failures, fmt.Sprintf("=== %s\n%s", e.Package, r.why(e)))
		}
	}
}

// why is all that was said about a package that failed without a failing test:
// the compiler's words, its own, and those of the tests that never ended.
func (r *run) why(e event) string {
	var b strings.Builder
	if t := r.builds[e.FailedBuild]; t != nil {
		b.WriteString(t.String())
	}
	b.WriteString(r.text(key{e.Package, ""}))
	for k, t := range r.output {
		if k.pkg == e.Package && k.test != "" {
			fmt.Fprintf(&b, "--- %s did not end\n%s", k.test, t)
		}
	}
	return b.String()
}

func (r *run) report() {
	if len(r.skips) > 0 {
		fmt.Fprintln(r.out, "\nskipped:")
		for _, s := range r.skips {
			fmt.Fprintln(r.out, "  "+s)
		}
	}
	for _, f := range r.failures {
		fmt.Fprintf(r.out, "\n%s", f)
	}
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}

func (r *run) text(k key) string {
	if t := r.output[k]; t != nil {
		return t.String()
	}
	return ""
}

func write[K comparable](m map[K]*strings.Builder, k K, s string) {
	if m[k] == nil {
		m[k] = &strings.Builder{}
	}
	m[k].WriteString(s)
}

// reason finds the words of t.Skip among a skipped test's output.
func reason(text string) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}
