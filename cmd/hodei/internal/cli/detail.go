package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// detail is what an event says, in a line: the change of state, the attempt, who it
// is about, and the reason. Events that it does not know it shows by the same fields.
func detail(e *schedulerv1.Event) string {
	var data map[string]any
	d := json.NewDecoder(bytes.NewReader(e.GetData()))
	d.UseNumber()
	if d.Decode(&data) != nil {
		return ""
	}
	var words []string
	add := func(format string, v any) {
		if text := fmt.Sprint(v); v != nil && text != "" && text != "0" {
			words = append(words, fmt.Sprintf(format, text))
		}
	}
	switch from, to := data["from"], data["to"]; {
	case from != nil && to != nil:
		words = append(words, fmt.Sprintf("%v -> %v", from, to))
	case to != nil:
		add("-> %s", to)
	case from != nil:
		add("from %s", from)
	default:
		add("%s", data["state"])
	}
	add("attempt %s", data["attempt"])
	add("worker %s", data["worker_id"])
	if !strings.HasPrefix(e.GetAggregate(), "job/") {
		add("job %s", data["job_id"])
	}
	add("name %s", data["name"])
	if result, ok := data["result"].(map[string]any); ok {
		if code := result["exit_code"]; code != nil {
			words = append(words, fmt.Sprintf("exit %v", code))
		}
		add("signal %s", result["signal"])
		if failure, ok := result["failure"].(map[string]any); ok {
			add("%s", failure["category"])
		}
	}
	add("cause %s", data["cause"])
	out := strings.Join(words, ", ")
	if why := whyOf(data); why != "" {
		return strings.TrimPrefix(out+": "+why, ": ")
	}
	return out
}

// whyOf is the reason that an event gives, if any.
func whyOf(data map[string]any) string {
	for _, key := range []string{"reason", "reasons", "error", "problem"} {
		if v := data[key]; v != nil && fmt.Sprint(v) != "" {
			return fmt.Sprint(v)
		}
	}
	return ""
}
