// Command testsum reads the output of `go test -json` and says what matters:
// one line for each package, why tests were skipped, every failure in full, and
// the count. It ends with 1 if anything failed, also if a package did not build.
//
// With -counts FILE it leaves "passed failed skipped" there for a summary over
// several runs. It is not a test runner: it runs nothing.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	counts := flag.String("counts", "", "`file` that gets the numbers of passed, failed and skipped tests")
	flag.Parse()

	sum, err := summarize(os.Stdin, os.Stdout)
	if err == nil && *counts != "" {
		err = os.WriteFile(*counts, fmt.Appendf(nil, "%d %d %d\n", sum.passed, sum.failed, sum.skipped), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if sum.failed > 0 {
		os.Exit(1)
	}
}
