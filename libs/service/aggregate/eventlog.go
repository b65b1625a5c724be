package aggregate

import (
	"context"
	"fmt"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/eventlog"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
)

// LogStream names the one stream of the event log's own aggregate.
func LogStream() event.Stream { return event.Stream{Type: catalogue.EventLog, ID: eventlog.ID} }

// LoadLog folds the event log's own aggregate, and returns the event that asked
// for the next epoch, where one is asked for. There may be no event of it yet.
func LoadLog(ctx context.Context, l Loader) (log eventlog.Log, request event.Event, err error) {
	events, err := l.Load(ctx, LogStream(), 0)
	if err != nil {
		return log, request, fmt.Errorf("load %s: %w", LogStream(), err)
	}
	for _, e := range events {
		fact, err := Decode(e)
		if err != nil {
			return log, request, err
		}
		if own, ok := fact.(eventlog.Event); ok {
			log = log.Evolve(own, e.StreamVersion, e.Time)
		}
		log.Version = e.StreamVersion
		if e.Type == (eventlog.EpochRequested{}).EventType() {
			request = e
		}
	}
	if log.Requested == "" {
		request = event.Event{}
	}
	return log, request, nil
}

// LogChange turns what was decided about the event log into its part of an
// append. It has no end, and nobody keeps it in memory: snapshots leave it out.
func LogChange(l eventlog.Log, meta event.Meta, facts []eventlog.Event) (store.Change, error) {
	return enclose(store.Change{Stream: LogStream(), Namespace: event.NoNamespace, Expected: l.Version, State: "PUBLISHED", Terminal: true}, meta, facts)
}
