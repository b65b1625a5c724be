package timeoutmonitor_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	timeoutmonitor "hodei.dev/services/timeout-monitor"
)

func TestThresholds(t *testing.T) {
	if d := timeoutmonitor.Default().Thresholds; d.WorkerDraining.String() != "none" || d.JobAssigned.String() != "30s" {
		t.Errorf("the defaults are %+v", d)
	}
	for _, c := range []struct{ yaml, wrong string }{
		{"thresholds: {job_assigned: none, worker_idle: 1h}", ""},
		{"thresholds: {job_assigned: 0s}", "thresholds.job_assigned"},
		{"thresholds: {worker_silence: -5s}", "thresholds.worker_silence"},
		{"thresholds: {kill_grace: none}", "thresholds.kill_grace"},
		{"thresholds: {job_waiting: 5s}", "job_waiting"},
		{"concurrency: 0", "concurrency"},
	} {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte(c.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := timeoutmonitor.Default()
		err := config.Load(&cfg, file, []string{"HODEI_POSTGRES_URL=postgres://x", "HODEI_NATS_URL=nats://x"})
		if c.wrong == "" {
			if err != nil || !cfg.Thresholds.JobAssigned.IsNone() {
				t.Errorf("%s: %v", c.yaml, err)
			}
			continue
		}
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%s: %v", c.yaml, err)
		}
	}
}
