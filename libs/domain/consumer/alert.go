package consumer

// AlertRaised is DeadLetterAlertRaised: a notice that so many of the consumer's dead
// letters are open that somebody should look.
type AlertRaised struct {
	v1
	Service string `json:"service"`
	Name    string `json:"name"`
	// Open is how many are open; Threshold from how many on the alert stands.
	Open      int64 `json:"open"`
	Threshold int64 `json:"threshold"`
}

// AlertCleared is DeadLetterAlertCleared: a notice that fewer are open again, or
// that nobody wants the alert any more.
type AlertCleared struct {
	v1
	Service string `json:"service"`
	Name    string `json:"name"`
	// Open is how many are left.
	Open int64 `json:"open"`
}

// EventType implements Event.
func (AlertRaised) EventType() string { return "DeadLetterAlertRaised" }

// EventType implements Event.
func (AlertCleared) EventType() string { return "DeadLetterAlertCleared" }

// Warn decides whether the number of open dead letters is news: one alert for each
// time that it reaches the threshold, whatever it grows to.
func (c Consumer) Warn(open, threshold int64) []Event {
	switch alarming := open >= threshold; {
	case alarming && !c.Alerted:
		return []Event{AlertRaised{Service: c.Service, Name: c.Name, Open: open, Threshold: threshold}}
	case !alarming && c.Alerted:
		return []Event{AlertCleared{Service: c.Service, Name: c.Name, Open: open}}
	}
	return nil
}
