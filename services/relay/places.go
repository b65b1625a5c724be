package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/services/relay/internal/watch"
)

// askTimeout bounds what is asked of NATS about consumers.
const askTimeout = 3 * time.Second

// places finds every consumer of the log: by the position that its service
// stores or, for those that store none, by what JetStream knows of its durable.
func places(q consumer.Pooled, js jetstream.JetStream, log *slog.Logger) func(ctx context.Context) ([]watch.Place, error) {
	return func(ctx context.Context) ([]watch.Place, error) {
		stored, err := consumer.AllStored(ctx, q)
		if err != nil {
			return nil, err
		}
		known := map[string]bool{}
		var all []watch.Place
		for _, s := range stored {
			known[s.Name] = true
			all = append(all, watch.Place{Service: watch.ServiceOf(s.Name), Name: s.Name, Position: s.Position})
		}
		durables, err := durables(ctx, js)
		if err != nil {
			log.Debug("cannot ask JetStream about consumers", "error", err) // without NATS the positions in Postgres still tell
		}
		for _, d := range durables {
			if !known[d.Name] {
				all = append(all, d)
			}
		}
		return all, nil
	}
}

// durables are the consumers as JetStream knows them.
func durables(ctx context.Context, js jetstream.JetStream) ([]watch.Place, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stream, err := bus.LookupEvents(ctx, js)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list := stream.Stream.ListConsumers(ctx)
	var all []watch.Place
	for info := range list.Info() {
		if info.Config.Durable == "" {
			continue // of a live view
		}
		waits := info.NumPending > 0 || info.NumAckPending > 0
		all = append(all, watch.Place{
			Service: watch.ServiceOf(info.Name), Name: info.Name, Position: stream.Base + int64(info.AckFloor.Stream), Waits: &waits,
		})
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list consumers: %w", err)
	}
	return all, nil
}
