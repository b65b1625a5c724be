package dispatcher

import (
	"context"
	"fmt"
	"time"

	"hodei.dev/libs/domain/circuit"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// checkBreakers names the check.
const checkBreakers = "breakers"

// examine names the circuits that are not closed.
func (a *active) examine(_ context.Context, s *platformv1.ServiceStatus) {
	d := a.current.Load()
	if d == nil {
		return // the active replica answers
	}
	for _, c := range d.Figures().Circuits {
		s.Findings = append(s.Findings, finding(c))
	}
}

func finding(c circuit.Circuit) *platformv1.Finding {
	action := "its workers are used again once it answers: see whether that registry runs and reaches NATS"
	if c.Kind == circuit.Provider {
		action = "one worker is made as a probe as soon as a job wants it: see `hodei provider get " + c.Name + "` and the provisioner's log"
	}
	return &platformv1.Finding{
		Check: checkBreakers, Severity: "warning", Subject: string(c.Kind) + "/" + c.Name,
		Problem: fmt.Sprintf("its circuit is %s since %s, after %d openings: %s", c.State, c.OpenedAt.UTC().Format(time.RFC3339), c.Openings, c.Reason),
		Action:  action,
	}
}
