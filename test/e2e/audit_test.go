package e2e

import (
	"fmt"
	"os/user"
	"strings"
	"testing"
	"time"

	"hodei.dev/test/system"
)

func audited(t *testing.T, c *system.Client) {
	t.Helper()
	if _, errs, code := c.Hodei("run", "--name", "audited", "--", "false"); code != 1 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	id := named(c, "audited")[0].ID
	j := look(c, id)
	var trace struct {
		CorrelationID string `json:"correlation_id"`
		Nodes         []struct {
			Event eventView `json:"event"`
			Depth int       `json:"depth"`
		} `json:"nodes"`
	}
	c.Until(30*time.Second, "the trace ends with the worker", func() (bool, string) {
		c.JSON(&trace, "audit", "trace", id)
		for _, n := range trace.Nodes {
			if n.Event.Type == "WorkerTerminated" {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%d events", len(trace.Nodes))
	})
	if trace.CorrelationID != j.CorrelationID {
		t.Errorf("traced %s, the job has %s", trace.CorrelationID, j.CorrelationID)
	}
	known, types := map[string]bool{}, map[string]int{}
	for _, n := range trace.Nodes {
		known[n.Event.ID] = true
		types[n.Event.Type]++
	}
	for _, n := range trace.Nodes {
		e := n.Event
		if e.CorrelationID != j.CorrelationID {
			t.Errorf("%s has correlation id %s", e.Type, e.CorrelationID)
		}
		if e.Actor == "" {
			t.Errorf("%s has no actor", e.Type)
		}
		if known[e.CausationID] != (n.Depth > 0) {
			t.Errorf("%s stands at depth %d and was caused by %q", e.Type, n.Depth, e.CausationID)
		}
	}
	for _, want := range []string{"JobCreated", "JobQueued", "JobAssigned", "JobStatusChanged", "WorkerStatusChanged"} {
		if types[want] == 0 {
			t.Errorf("no %s in the trace: %v", want, types)
		}
	}
	for _, e := range history(c, id) {
		if !known[e.ID] {
			t.Errorf("%s of the job's history is not in the trace", e.Type)
		}
	}
	out, _, code := c.Hodei("audit", "trace", id)
	if code != 0 || !strings.Contains(out, j.CorrelationID) || !strings.Contains(out, "JobStatusChanged") {
		t.Errorf("the trace for people: exit %d\n%s", code, out)
	}
}

func searched(t *testing.T, c *system.Client) {
	t.Helper()
	const correlation = "story-of-a-search-0001"
	before := time.Now().UTC().Add(-time.Millisecond)
	out, errs, code := c.Hodei("submit", "--correlation-id", correlation, "--namespace", "searched", "--", "true")
	if code != 0 {
		t.Fatalf("submit: exit %d: %s", code, errs)
	}
	id := strings.TrimSpace(out)
	j := reaches(t, c, id, 60*time.Second, "SUCCEEDED")
	want := history(c, id)
	after := want[len(want)-1].Time.Add(time.Millisecond).UTC()
	aggregate := "job/" + id
	c.Until(30*time.Second, "audit has all of it", func() (bool, string) {
		return len(search(c, "--aggregate", aggregate)) == len(want), ""
	})
	if j.CorrelationID != correlation {
		t.Errorf("its correlation id is %s", j.CorrelationID)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for name, story := range map[string]struct {
		args []string
		want func(eventView) bool
	}{
		"aggregate": {[]string{"--aggregate", aggregate}, func(e eventView) bool { return e.Aggregate == aggregate }},
		"prefix":    {[]string{"--aggregate", aggregate[:len(aggregate)-6]}, func(e eventView) bool { return e.Aggregate == aggregate }},
		"types":     {[]string{"--aggregate", aggregate, "--type", "JobCreated,JobQueued"}, func(e eventView) bool { return e.Type == "JobCreated" || e.Type == "JobQueued" }},
		"actor":     {[]string{"--aggregate", aggregate, "--actor", "user/" + me.Username}, func(e eventView) bool { return e.Actor == "user/"+me.Username }},
		"namespace": {[]string{"--namespace", "searched", "--aggregate", "job"}, func(e eventView) bool { return e.Namespace == "searched" }},
		"time": {
			[]string{"--aggregate", aggregate, "--since", before.Format(time.RFC3339Nano), "--until", after.Format(time.RFC3339Nano)},
			func(eventView) bool { return true },
		},
		"all of them": {
			[]string{"--aggregate", aggregate, "--correlation-id", correlation, "--type", "JobAssigned", "--namespace", "searched", "--actor", "service/dispatcher"},
			func(e eventView) bool { return e.Type == "JobAssigned" },
		},
	} {
		var expected []string
		for _, e := range want {
			if story.want(e) {
				expected = append(expected, e.ID)
			}
		}
		var got []string
		for _, e := range search(c, append(story.args, "--asc")...) {
			got = append(got, e.ID)
		}
		if len(expected) == 0 || strings.Join(got, " ") != strings.Join(expected, " ") {
			t.Errorf("by %s: %v, want %v", name, got, expected)
		}
		var counts struct {
			Counts map[string]int `json:"counts"`
			Total  int            `json:"total"`
		}
		c.JSON(&counts, append([]string{"audit", "counts"}, story.args...)...)
		sum := 0
		for _, n := range counts.Counts {
			sum += n
		}
		if counts.Total != len(expected) || sum != len(expected) {
			t.Errorf("counts by %s: %+v, want %d", name, counts, len(expected))
		}
	}
	if early := search(c, "--aggregate", aggregate, "--until", before.Format(time.RFC3339Nano)); len(early) != 0 {
		t.Errorf("before it was queued it has %d events", len(early))
	}
	var limited []eventView
	c.JSON(&limited, "audit", "search", "--aggregate", aggregate, "--limit", "2")
	if len(limited) != 2 || limited[0].ID != want[len(want)-1].ID {
		t.Errorf("the two newest: %+v", limited)
	}
	if _, errs, code := c.Hodei("audit", "search", "--since", "yesterday"); code != 2 || !strings.Contains(errs, "--since") {
		t.Errorf("a wrong time: exit %d: %s", code, errs)
	}
}

func search(c *system.Client, args ...string) []eventView {
	var events []eventView
	c.JSON(&events, append([]string{"audit", "search", "--limit", "0"}, args...)...)
	return events
}
