package dispatcher

import (
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/circuit"
)

func TestFinding(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		of              circuit.Guarded
		subject, action string
	}{
		{circuit.Guarded{Kind: circuit.Path, Subject: "host/1", Name: "host/1"}, "path/host/1", "reaches NATS"},
		{circuit.Guarded{Kind: circuit.Provider, Subject: "an-id", Name: "local"}, "provider/local", "hodei provider get local"},
	} {
		f := finding(circuit.Circuit{Guarded: c.of, State: circuit.StateOpen, Openings: 2, OpenedAt: at, Reason: "no disk"})
		if f.GetCheck() != "breakers" || f.GetSubject() != c.subject || !strings.Contains(f.GetAction(), c.action) ||
			!strings.Contains(f.GetProblem(), "OPEN since 2026-01-02T03:04:05Z, after 2 openings: no disk") {
			t.Errorf("%v", f)
		}
	}
}
