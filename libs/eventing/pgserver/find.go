package pgserver

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// binaries are the two programs that are needed.
type binaries struct{ initdb, postgres string }

// findBinaries looks in $HODEI_PG_BIN, then for the newest version where Linux
// distributions put them, then in PATH.
func findBinaries() (binaries, error) {
	var searched []string
	if dir := os.Getenv("HODEI_PG_BIN"); dir != "" {
		searched = append(searched, dir)
	} else {
		for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
			dirs, err := filepath.Glob(pattern)
			if err != nil {
				continue // the patterns are well formed
			}
			slices.SortFunc(dirs, func(a, b string) int { return majorVersion(b) - majorVersion(a) })
			searched = append(searched, dirs...)
		}
		searched = append(searched, filepath.SplitList(os.Getenv("PATH"))...)
	}
	for _, dir := range searched {
		b := binaries{initdb: filepath.Join(dir, "initdb"), postgres: filepath.Join(dir, "postgres")}
		if executable(b.initdb) && executable(b.postgres) {
			return b, nil
		}
	}
	return binaries{}, &NotFoundError{Searched: searched}
}

func executable(path string) bool {
	_, err := exec.LookPath(path)
	return err == nil
}

// majorVersion returns the number in a path such as /usr/lib/postgresql/15/bin; 0 where there is none.
func majorVersion(path string) int {
	digits := strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' })
	if len(digits) == 0 {
		return 0
	}
	n, err := strconv.Atoi(digits[0])
	if err != nil {
		return 0
	}
	return n
}
