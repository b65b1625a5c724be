package timeoutmonitor

import (
	"context"
	"fmt"
	"time"

	platformv1 "hodei.dev/proto/hodei/platform/v1"
	"hodei.dev/services/timeout-monitor/internal/postgres"
)

const (
	// margin is how long after its deadline something is called stuck: a recovery
	// takes its time, and is tried again.
	margin = 30 * time.Second
	// listed is how many of the stuck are named.
	listed = 10
	// checkDeadlines names the check.
	checkDeadlines = "deadlines"
)

// examine looks for jobs and workers that stay where they are: past their
// deadline, or without one.
func (a *active) examine(ctx context.Context, s *platformv1.ServiceStatus) {
	if a.monitor.Load() == nil {
		return // the active replica answers
	}
	overdue, n, err := a.deadlines.Overdue(ctx, margin, listed)
	if err != nil {
		s.Problems["deadlines"] = err.Error()
		return
	}
	s.Figures["overdue"] = n
	for _, x := range overdue {
		s.Findings = append(s.Findings, stuck(x, fmt.Sprintf("it is %s and its deadline has passed %s ago", x.State, x.Overdue.Round(time.Second)),
			"its recovery does not succeed: see the timeout-monitor's log and `hodei audit search --aggregate "+x.Aggregate+"`"))
	}
	unwatched, n, err := a.deadlines.Unwatched(ctx, listed)
	if err != nil {
		s.Problems["deadlines"] = err.Error()
		return
	}
	s.Figures["unwatched"] = n
	for _, x := range unwatched {
		s.Findings = append(s.Findings, stuck(x, fmt.Sprintf("it is %s and under no deadline", x.State),
			"an event of it could not be applied: see `hodei dlq list --service timeout-monitor`"))
	}
}

func stuck(x postgres.Stuck, problem, action string) *platformv1.Finding {
	return &platformv1.Finding{Check: checkDeadlines, Severity: "error", Subject: x.Aggregate, Problem: problem, Action: action}
}
