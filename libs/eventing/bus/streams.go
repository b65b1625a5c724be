package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
)

// metaBase is the key of a stream's metadata that holds the position of the
// event before its first message.
const metaBase = "base"

const (
	// EventsMaxAge is how long the events stream keeps its copy; the log keeps the truth.
	EventsMaxAge = 72 * time.Hour
	// TelemetryMaxAge is how long telemetry is kept.
	TelemetryMaxAge = 10 * time.Minute
	// deadLetterDuplicates is how long a dead letter that is published again,
	// after a crash before its effect was stored, is known as the same.
	deadLetterDuplicates = time.Hour
)

// Events is the identity of the events stream and what it held when asked:
// position = Base + sequence.
type Events struct {
	// Base stands in the stream's metadata since its creation.
	Base int64
	// Created tells a stream from another one of the same name.
	Created time.Time
	// First and Last are sequences; First is Last+1 where the stream is empty.
	First, Last uint64
	// Messages is how many there are; less than Last-First+1 after interior deletes.
	Messages uint64
	// Deleted is how many messages are missing between First and Last.
	Deleted int
	// Stream is the handle that the state was read with.
	Stream jetstream.Stream
}

// Head is the position of the last message, or Base where there was never one.
func (e Events) Head() int64 { return e.Base + int64(e.Last) }

// Start is the position of the first message that is still there.
func (e Events) Start() int64 { return e.Base + int64(e.First) }

// OtherThan tells whether e is of another stream than before, or of one whose positions were moved.
func (e Events) OtherThan(before Events) bool {
	return !e.Created.Equal(before.Created) || e.Base != before.Base
}

// ErrNoBase says that a stream of the events stream's name has no base in its
// metadata: somebody else than the relay made it.
var ErrNoBase = fault.New(fault.Precondition, "stream %s has no base in its metadata", EventsStream).
	WithCode("EVENTS_STREAM_FOREIGN", "remove the stream: the relay makes it again from the event log")

// LookupEvents reads the events stream's identity and state; jetstream.ErrStreamNotFound
// where there is none yet.
func LookupEvents(ctx context.Context, js jetstream.JetStream) (Events, error) {
	s, err := js.Stream(ctx, EventsStream)
	if err != nil {
		return Events{}, fmt.Errorf("look up stream %s: %w", EventsStream, err)
	}
	return eventsOf(s, s.CachedInfo())
}

func eventsOf(s jetstream.Stream, info *jetstream.StreamInfo) (Events, error) {
	base, err := strconv.ParseInt(info.Config.Metadata[metaBase], 10, 64)
	if err != nil {
		return Events{}, ErrNoBase
	}
	e := Events{
		Base: base, Created: info.Created, First: info.State.FirstSeq, Last: info.State.LastSeq,
		Messages: info.State.Msgs, Deleted: info.State.NumDeleted, Stream: s,
	}
	if e.Messages == 0 {
		e.First = e.Last + 1
	}
	return e, nil
}

// EventsConfig says how the relay makes the events stream.
type EventsConfig struct {
	// Replicas is 1, 3 or 5. Default 1.
	Replicas int
	// MaxAge is how long messages are kept. Default EventsMaxAge.
	MaxAge time.Duration
	// Base is asked for the position before the first message of a new stream.
	Base func(ctx context.Context) (int64, error)
}

// EnsureEvents makes the events stream where it is missing and adjusts replicas
// and age where they differ. Only the relay calls it, any number of times and
// also from two relays at once: the first one's base stands for ever. A stream
// without a base that never had a message is replaced; one that had is [ErrNoBase].
func EnsureEvents(ctx context.Context, js jetstream.JetStream, cfg EventsConfig) (Events, error) {
	want := jetstream.StreamConfig{
		Name: EventsStream, Description: "Copy of the event log: position = metadata base + sequence. Only hodei-relay publishes here.",
		Subjects: []string{AllEvents()}, Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
		MaxAge: cfg.MaxAge, Replicas: max(cfg.Replicas, 1),
	}
	if want.MaxAge == 0 {
		want.MaxAge = EventsMaxAge
	}
	s, err := js.Stream(ctx, EventsStream)
	if err == nil && blank(s.CachedInfo()) {
		// Somebody made it by hand and nothing was ever in it. It is replaced and not
		// given a base: of two relays, only one can create, but both could write a base.
		if err := js.DeleteStream(ctx, EventsStream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return Events{}, fmt.Errorf("remove the empty stream %s that has no base: %w", EventsStream, err)
		}
		err = jetstream.ErrStreamNotFound
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		base, err := cfg.Base(ctx)
		if err != nil {
			return Events{}, fmt.Errorf("find the base of a new stream %s: %w", EventsStream, err)
		}
		want.Metadata = map[string]string{metaBase: strconv.FormatInt(base, 10)}
		s, err := js.CreateStream(ctx, want)
		if err == nil {
			return eventsOf(s, s.CachedInfo())
		}
		if !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return Events{}, fmt.Errorf("create stream %s: %w", EventsStream, err)
		}
		return LookupEvents(ctx, js)
	}
	if err != nil {
		return Events{}, fmt.Errorf("look up stream %s: %w", EventsStream, err)
	}
	e, err := eventsOf(s, s.CachedInfo())
	if err != nil {
		return Events{}, err
	}
	if have := s.CachedInfo().Config; have.Replicas != want.Replicas || have.MaxAge != want.MaxAge {
		have.Replicas, have.MaxAge = want.Replicas, want.MaxAge
		if s, err = js.UpdateStream(ctx, have); err != nil {
			return Events{}, fmt.Errorf("update stream %s: %w", EventsStream, err)
		}
		return eventsOf(s, s.CachedInfo())
	}
	return e, nil
}

// blank tells a stream without a base that never had a message.
func blank(info *jetstream.StreamInfo) bool {
	_, err := eventsOf(nil, info)
	return errors.Is(err, ErrNoBase) && info.State.LastSeq == 0
}

// Ensure makes the streams that a service needs beside the events stream: the
// telemetry stream, and the service's dead-letter stream where service is not
// empty. It may run in any process, any order, any number of times, and retries
// until NATS answers or ctx ends.
func Ensure(ctx context.Context, js jetstream.JetStream, service string, replicas int) error {
	streams := []jetstream.StreamConfig{{
		Name: TelemetryStream, Description: "Heartbeats: telemetry, not facts.", Subjects: []string{"hodei.telemetry.>"},
		Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld, MaxAge: TelemetryMaxAge, MaxBytes: 64 << 20,
		Duplicates: time.Minute, Replicas: max(replicas, 1), AllowDirect: true,
	}}
	if service != "" {
		streams = append(streams, jetstream.StreamConfig{
			Name: DeadLetterStream(service), Description: "Events that " + service + " could not handle, untouched, with their errors.",
			Subjects: []string{DeadLetters(service)}, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			Duplicates: deadLetterDuplicates, Replicas: max(replicas, 1), AllowDirect: true,
		})
	}
	for _, s := range streams {
		if err := retry(ctx, func() error { return ensure(ctx, js, s) }); err != nil {
			return fmt.Errorf("ensure stream %s: %w", s.Name, err)
		}
	}
	return nil
}

// ensure creates first: two processes that create the same at once both succeed,
// and whoever finds another form updates it.
func ensure(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := js.CreateStream(ctx, cfg)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		var s jetstream.Stream
		if s, err = js.Stream(ctx, cfg.Name); err == nil {
			cfg.Replicas = max(cfg.Replicas, s.CachedInfo().Config.Replicas)
			_, err = js.UpdateStream(ctx, cfg)
		}
	}
	return err
}

// WaitEvents returns once the relay has made the events stream, or ctx ends.
func WaitEvents(ctx context.Context, js jetstream.JetStream) (Events, error) {
	var e Events
	err := retry(ctx, func() error {
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var err error
		e, err = LookupEvents(ask, js)
		return err
	})
	return e, err
}

// retry calls fn until it succeeds, ctx ends, or its error says that the request
// itself is wrong. A server that starts, has no leader yet or is away answers
// with almost anything, so only the clear refusals end it.
func retry(ctx context.Context, fn func() error) error {
	var last error // the last answer; a question that ctx cut short tells nothing
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := fn()
		if err == nil || final(err) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), last)
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
	}
}

// noPeers is what a cluster answers that does not know enough of its servers yet.
const noPeers = 10005

func final(err error) bool {
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrAuthorization) || errors.Is(err, jetstream.ErrInvalidStreamName) {
		return true
	}
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code == 400 && api.ErrorCode != noPeers
}
