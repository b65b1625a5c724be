package process

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"hodei.dev/services/provisioner/internal/app"
)

// Machine is what this machine has.
func Machine() (app.Machine, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return app.Machine{}, fmt.Errorf("read how much memory the machine has: %w", err)
	}
	defer f.Close()
	m := app.Machine{CPUs: runtime.NumCPU()}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if rest, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				m.MemoryBytes = kib << 10
			}
			break
		}
	}
	return m, nil
}
