package check

import (
	"encoding/json"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/eventing/event"
)

// settlement is what an operator had done with an event that cannot be decoded:
// handled with other data, or passed over.
type settlement struct {
	edited    json.RawMessage
	discarded bool
}

// settle reads in the log what became of its dead letters. A fold that means to
// equal what services have made of the log holds to it.
func (f *fold) settle(log []event.Event) {
	original := map[string]string{} // by letter
	for _, e := range log {
		if e.Stream.Type != catalogue.DeadLetter {
			continue
		}
		fact, err := catalogue.Decode(e.Type, e.Version, e.Data)
		if err != nil {
			continue // apply says so
		}
		switch fact := fact.(type) {
		case deadletter.Recorded:
			original[e.Stream.ID] = fact.OriginalID
		case deadletter.ReplayRequested:
			if len(fact.Data) > 0 {
				f.settled[original[e.Stream.ID]] = settlement{edited: fact.Data}
			}
		case deadletter.Discarded:
			f.settled[original[e.Stream.ID]] = settlement{discarded: true}
		}
	}
}
