package eventlog

import "time"

// Event is a fact about the event log's way to its readers: a closed set.
type Event interface {
	EventType() string
	EventVersion() int
	own()
}

// The causes of an epoch and of publishing again.
const (
	// CauseFirst: there was no stream yet that the log knows of.
	CauseFirst = "FIRST"
	// CauseWiped: the stream was gone and was made anew from the log.
	CauseWiped = "WIPED"
	// CauseTailLost: the stream had lost its last messages.
	CauseTailLost = "TAIL_LOST"
	// CauseRequested: an operator has had the stream made anew.
	CauseRequested = "REQUESTED"
)

// EpochRequested says that an operator has the events stream made anew, because it holds
// what the log does not.
type EpochRequested struct {
	// Reason is the difference that was found, in words.
	Reason string `json:"reason"`
	// Stream is when the stream that is given up was created; Base and StreamHead are its ends.
	Stream     time.Time `json:"stream"`
	Base       int64     `json:"base"`
	StreamHead int64     `json:"stream_head"`
	// LogHead is where the log ended, Agreed the last position at which both say the same.
	LogHead int64 `json:"log_head"`
	Agreed  int64 `json:"agreed"`
}

// EpochStarted says that the relay publishes to a stream that it has not known before.
type EpochStarted struct {
	Cause  string    `json:"cause"`
	Stream time.Time `json:"stream"`
	// Base is the position before the stream's first message.
	Base    int64 `json:"base"`
	LogHead int64 `json:"log_head"`
}

// Republished says that positions that were published before are published again, because
// the stream no longer has them. Nothing happens twice: consumers know how far they
// are. One event stands for a whole incident.
type Republished struct {
	Cause   string `json:"cause"`
	First   int64  `json:"first"`
	Through int64  `json:"through"`
	// Incidents is how many times it happened since the event before, when they followed closely.
	Incidents int `json:"incidents"`
}

// EventType names the fact.
func (EpochRequested) EventType() string { return "StreamEpochRequested" }

// EventType names the fact.
func (EpochStarted) EventType() string { return "StreamEpochStarted" }

// EventType names the fact.
func (Republished) EventType() string { return "EventRepublished" }

// EventVersion is the version of its form.
func (EpochRequested) EventVersion() int { return 1 }

// EventVersion is the version of its form.
func (EpochStarted) EventVersion() int { return 1 }

// EventVersion is the version of its form.
func (Republished) EventVersion() int { return 1 }

func (EpochRequested) own() {}
func (EpochStarted) own()   {}
func (Republished) own()    {}
