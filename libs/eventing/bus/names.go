package bus

import (
	"strconv"
	"strings"
)

// The two streams that all services share.
const (
	// EventsStream holds the event log's copy; only the relay publishes to it.
	EventsStream = "HODEI_EVENTS"
	// TelemetryStream holds heartbeats for a short while.
	TelemetryStream = "HODEI_TELEMETRY"

	deadLetterPrefix = "HODEI_DLQ_"
)

// NudgeSubject is where an appender says how far the log has grown (core NATS,
// no stream): a position in decimal.
const NudgeSubject = "hodei.nudge.log"

// EventSubject is where an event is published. The aggregate's id is a header,
// not a token: in the subject it costs the server 150 bytes of heap an event.
func EventSubject(namespace, streamType, eventType string) string {
	return "hodei.events." + namespace + "." + streamType + "." + eventType
}

// AllEvents matches every message of EventsStream.
func AllEvents() string { return "hodei.events.>" }

// TombstoneSubject is where the relay publishes the place of an event that can
// never be published.
func TombstoneSubject() string { return EventSubject("_", "_", "Tombstone") }

// EventFilters are the subjects of the events of these types, in any namespace,
// and of tombstones, which may stand for any type. No types means all events.
func EventFilters(types []string) []string {
	if len(types) == 0 {
		return []string{AllEvents()}
	}
	seen := make(map[string]bool, len(types))
	filters := make([]string, 0, len(types)+1)
	for _, t := range types {
		if !seen[t] {
			seen[t] = true
			filters = append(filters, EventSubject("*", "*", t))
		}
	}
	return append(filters, TombstoneSubject())
}

// TelemetrySubject is where telemetry of one kind about one thing is published,
// such as ("WorkerHeartbeat", worker id).
func TelemetrySubject(eventType, id string) string { return "hodei.telemetry." + eventType + "." + id }

// HeartbeatSubject is where one worker's heartbeats are published.
func HeartbeatSubject(workerID string) string { return TelemetrySubject("WorkerHeartbeat", workerID) }

// DeadLetterStream is the name of a service's dead-letter stream:
// "timeout-monitor" has HODEI_DLQ_TIMEOUT_MONITOR.
func DeadLetterStream(service string) string {
	return deadLetterPrefix + strings.ToUpper(strings.ReplaceAll(service, "-", "_"))
}

// DeadLetterService is the service of a dead-letter stream, and whether it is one.
func DeadLetterService(stream string) (string, bool) {
	name, ok := strings.CutPrefix(stream, deadLetterPrefix)
	return strings.ToLower(strings.ReplaceAll(name, "_", "-")), ok && name != ""
}

// DeadLetterSubject is where a service's dead letters of one event type go.
func DeadLetterSubject(service, eventType string) string {
	return "hodei.dlq." + service + "." + eventType
}

// DeadLetters matches all dead letters of a service.
func DeadLetters(service string) string { return DeadLetterSubject(service, ">") }

// CommandSubject is where the registry replica that holds a worker's session
// listens for commands to it. An older session has another epoch, so another subject.
func CommandSubject(workerID string, epoch int64) string {
	return "hodei.cmd." + workerID + "." + strconv.FormatInt(epoch, 10)
}

// LogSubject is where a job's log chunks fan out live (core NATS, no stream).
func LogSubject(jobID string) string { return "hodei.log." + jobID }

// ConsumerName is the durable consumer of one part of a service; an empty part
// is the service's main one.
func ConsumerName(service, part string) string {
	if part == "" {
		return service
	}
	return service + "-" + part
}

// ValidToken reports whether s can be one token of a subject, and not a wildcard.
func ValidToken(s string) bool {
	if s == "" || s == "*" || s == ">" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '.' || c == '*' || c == '>' {
			return false
		}
	}
	return true
}
