package watch

import (
	"context"
	"fmt"
	"maps"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/catalogue"
	domain "hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/incident"
	"hodei.dev/libs/service/letters"
)

func (w *Watch) beginLetters() { w.tally, w.alerted = letters.NewTally(w.cfg.Log), nil }

// letters counts the open dead letters and records where their number has reached
// the threshold, or is below it again.
func (w *Watch) letters(ctx context.Context) error {
	if w.alerted == nil {
		alerted, err := w.standing(ctx)
		if err != nil {
			return fmt.Errorf("find the alerts of dead letters: %w", err)
		}
		w.alerted = alerted
	}
	open, err := w.tally.Count(ctx)
	if err != nil {
		return err
	}
	w.show(open)
	holders := maps.Clone(w.alerted)
	for h := range open {
		holders[h] = w.alerted[h]
	}
	for h, alerted := range holders {
		if n := int64(open[h]); (n >= w.cfg.Letters) != alerted {
			if err := w.warn(ctx, h, n); err != nil {
				return fmt.Errorf("tell of the dead letters of consumer %s: %w", h.Consumer, err)
			}
		}
	}
	return nil
}

// standing reads in the log whose alert stands.
func (w *Watch) standing(ctx context.Context) (map[letters.Holder]bool, error) {
	alerted := map[letters.Holder]bool{}
	_, err := w.cfg.Log.Snapshot(ctx, store.SnapshotOptions{
		StreamTypes: []string{catalogue.Consumer},
		EventTypes:  []string{domain.AlertRaised{}.EventType(), domain.AlertCleared{}.EventType()},
	}, func(e event.Event) error {
		fact, err := aggregate.Decode(e)
		switch fact := fact.(type) {
		case domain.AlertRaised:
			alerted[letters.Holder{Service: fact.Service, Consumer: fact.Name}] = true
		case domain.AlertCleared:
			delete(alerted, letters.Holder{Service: fact.Service, Consumer: fact.Name})
		}
		return err
	})
	return alerted, err
}

func (w *Watch) warn(ctx context.Context, h letters.Holder, open int64) error {
	var facts []domain.Event
	_, err := incident.Record(ctx, w.cfg.Log, catalogue.Relay, h.Service, h.Consumer, func(c domain.Consumer) []domain.Event {
		facts = c.Warn(open, w.cfg.Letters)
		return facts
	})
	if err != nil {
		return err
	}
	for _, fact := range facts {
		switch fact.(type) {
		case domain.AlertRaised:
			w.cfg.Logger.ErrorContext(ctx, "many dead letters are open: see the causes with `hodei dlq list --group`", "consumer", h.Consumer,
				"service", h.Service, "open", open, "threshold", w.cfg.Letters, "alert", true)
		case domain.AlertCleared:
			w.cfg.Logger.InfoContext(ctx, "an alert of dead letters is over", "consumer", h.Consumer, "service", h.Service, "open", open)
		}
	}
	if w.alerted[h] = open >= w.cfg.Letters; !w.alerted[h] {
		delete(w.alerted, h)
	}
	return nil
}

// show is what the gauge tells from now on.
func (w *Watch) show(open map[letters.Holder]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = open
}

func (w *Watch) observeLetters(meter metric.Meter) error {
	_, err := meter.Int64ObservableGauge("hodei.consumer.dead_letters_open",
		metric.WithDescription("Dead letters that wait for an operator, by service and consumer; absent where there are none."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			for h, n := range w.open {
				o.Observe(int64(n), metric.WithAttributes(attribute.String("service", h.Service), attribute.String("consumer", h.Consumer)))
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("make the watch's instruments: %w", err)
	}
	return nil
}
