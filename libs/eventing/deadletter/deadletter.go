// Package deadletter keeps what a service could not handle: each service has a
// stream of its own (bus.DeadLetterStream), and a letter is the original message,
// untouched, with headers that say what went wrong.
//
// A letter is never removed by reading it. The event itself also stays in the
// log; a letter is the to-do list, not the only copy.
package deadletter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

// The headers that a letter adds to the original ones.
const (
	headerError      = "hodei-error"
	headerConsumer   = "hodei-consumer"
	headerDeliveries = "hodei-deliveries"
	headerFirst      = "hodei-first-time"
	headerLast       = "hodei-last-time"
	headerOmitted    = "hodei-data-omitted"
)

const (
	// maxError bounds the error text in a header.
	maxError = 2048
	// undecodable stands for the event type of what is no event.
	undecodable = "undecodable"
)

// Letter is one dead letter.
type Letter struct {
	// Service could not handle it.
	Service string
	// Sequence is the letter's number in the service's stream; set when read.
	Sequence uint64
	// Event is the original; nil where it cannot be decoded.
	Event *event.Event
	// Position is the event's place in the log, also where Event is nil.
	Position int64
	// Parks: later events of its aggregate wait behind it. Replayed: it is a replay
	// that has failed. Both are for the log, not for the stream.
	Parks, Replayed bool
	// Header and Data are the original message as it was.
	Header map[string][]string
	Data   []byte
	// DataOmitted says that the data was too large for a message; the log has it.
	DataOmitted bool
	// Error is the last error, Consumer whose it is.
	Error, Consumer string
	// Deliveries is how often handling was tried, First and Last when.
	Deliveries  int
	First, Last time.Time
	// Stored is when the letter was stored; set when read.
	Stored time.Time
}

// Type is the event's short name, or "undecodable".
func (l Letter) Type() string {
	if l.Event == nil {
		return undecodable
	}
	return l.Event.Type
}

// Publish stores a letter. Within an hour the same id is stored once only, so a
// crash before the caller has stored its effect doubles nothing.
func Publish(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, id string, l Letter) error {
	text := l.Error
	if len(text) > maxError {
		text = text[:maxError]
	}
	m := &nats.Msg{Subject: bus.DeadLetterSubject(l.Service, subjectType(l)), Header: make(nats.Header, len(l.Header)+6), Data: l.Data}
	for k, v := range l.Header {
		if !strings.HasPrefix(k, "Nats-") { // the stream's own instructions are not the message's
			m.Header[k] = v
		}
	}
	m.Header[headerError] = []string{event.EncodeValue(text)}
	m.Header[headerConsumer] = []string{event.EncodeValue(l.Consumer)}
	m.Header[headerDeliveries] = []string{strconv.Itoa(l.Deliveries)}
	m.Header[headerFirst] = []string{l.First.UTC().Format(time.RFC3339Nano)}
	m.Header[headerLast] = []string{l.Last.UTC().Format(time.RFC3339Nano)}
	if most := nc.MaxPayload(); most > 0 && int64(m.Size()+256) > most {
		m.Data = nil
		m.Header[headerOmitted] = []string{"true"}
	}
	if _, err := js.PublishMsg(ctx, m, jetstream.WithMsgID(id), jetstream.WithExpectStream(bus.DeadLetterStream(l.Service))); err != nil {
		return fmt.Errorf("store a dead letter of %s: %w", l.Service, err)
	}
	return nil
}

func subjectType(l Letter) string {
	if t := l.Type(); bus.ValidToken(t) {
		return t
	}
	return undecodable
}

// Filter selects letters; the zero value selects the newest 100 of all services.
type Filter struct {
	// Service is one service's name; empty means all.
	Service string
	// Type is an event type's short name; empty means all.
	Type string
	// Since leaves out what was stored before.
	Since time.Time
	// Limit is the most letters to return, the newest ones. Default 100; negative means all.
	Limit int
}

// List returns letters, oldest first, of one service after the other.
func List(ctx context.Context, js jetstream.JetStream, f Filter) ([]Letter, error) {
	if f.Limit == 0 {
		f.Limit = 100
	}
	services := []string{f.Service}
	if f.Service == "" {
		counts, err := Count(ctx, js)
		if err != nil {
			return nil, err
		}
		services = slices.Sorted(maps.Keys(counts))
	}
	var all []Letter
	for _, service := range services {
		letters, err := listOne(ctx, js, service, f)
		if errors.Is(err, jetstream.ErrStreamNotFound) && f.Service == "" {
			continue // removed since it was counted
		}
		if err != nil {
			return nil, err
		}
		all = append(all, letters...)
	}
	if f.Limit > 0 && len(all) > f.Limit {
		newest := slices.Clone(all)
		slices.SortStableFunc(newest, func(a, b Letter) int { return b.Stored.Compare(a.Stored) })
		oldest := newest[f.Limit-1].Stored
		all = slices.DeleteFunc(all, func(l Letter) bool { return l.Stored.Before(oldest) })
		all = all[max(0, len(all)-f.Limit):]
	}
	return all, nil
}

func listOne(ctx context.Context, js jetstream.JetStream, service string, f Filter) ([]Letter, error) {
	stream, err := open(ctx, js, service)
	if err != nil {
		return nil, err
	}
	cfg := jetstream.OrderedConsumerConfig{FilterSubjects: []string{bus.DeadLetters(service)}, InactiveThreshold: time.Minute}
	if f.Type != "" {
		cfg.FilterSubjects = []string{bus.DeadLetterSubject(service, f.Type)}
	}
	switch state := stream.CachedInfo().State; {
	case !f.Since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &f.Since
	case f.Type == "" && f.Limit > 0 && state.LastSeq > uint64(f.Limit) && state.NumDeleted == 0:
		// Without a filter the newest are the last: nothing before them is read.
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, state.LastSeq-uint64(f.Limit)+1
	}
	cons, err := stream.OrderedConsumer(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of %s: %w", service, err)
	}
	info, err := cons.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read dead letters of %s: %w", service, err)
	}
	pending := info.NumPending
	if pending == 0 {
		return nil, nil
	}
	it, err := cons.Messages()
	if err != nil {
		return nil, fmt.Errorf("read dead letters of %s: %w", service, err)
	}
	defer it.Stop()
	var letters []Letter
	for pending > 0 {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read dead letters of %s: %w", service, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return nil, fmt.Errorf("read dead letters of %s: %w", service, err)
		}
		letters = append(letters, letterOf(service, meta.Sequence.Stream, meta.Timestamp, m.Headers(), m.Data()))
		if f.Limit > 0 && len(letters) > 2*f.Limit {
			letters = append(letters[:0], letters[len(letters)-f.Limit:]...)
		}
		pending = meta.NumPending
	}
	if f.Limit > 0 && len(letters) > f.Limit {
		letters = letters[len(letters)-f.Limit:]
	}
	return letters, nil
}

func open(ctx context.Context, js jetstream.JetStream, service string) (jetstream.Stream, error) {
	s, err := js.Stream(ctx, bus.DeadLetterStream(service))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fault.New(fault.NotFound, "there is no service %q with a dead-letter stream", service).
			WithCode("DEAD_LETTERS_NOT_FOUND", "check the service's name")
	}
	if err != nil {
		return nil, fmt.Errorf("open dead letters of %s: %w", service, err)
	}
	return s, nil
}

// Get returns one letter; a fault.NotFound where there is none of that number.
func Get(ctx context.Context, js jetstream.JetStream, service string, sequence uint64) (Letter, error) {
	s, err := open(ctx, js, service)
	if err != nil {
		return Letter{}, err
	}
	m, err := s.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Letter{}, fault.New(fault.NotFound, "no dead letter %d of service %q", sequence, service).
			WithCode("DEAD_LETTER_NOT_FOUND", "list the dead letters to see their numbers")
	}
	if err != nil {
		return Letter{}, fmt.Errorf("read dead letter %d of %s: %w", sequence, service, err)
	}
	return letterOf(service, m.Sequence, m.Time, m.Header, m.Data), nil
}

// Count returns how many letters each service has; services without any are there with 0.
func Count(ctx context.Context, js jetstream.JetStream) (map[string]uint64, error) {
	counts := map[string]uint64{}
	streams := js.ListStreams(ctx)
	for s := range streams.Info() {
		if service, ok := bus.DeadLetterService(s.Config.Name); ok {
			counts[service] = s.State.Msgs
		}
	}
	if err := streams.Err(); err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return counts, nil
}

func letterOf(service string, seq uint64, stored time.Time, header nats.Header, data []byte) Letter {
	text := func(name string) string {
		if v := header[name]; len(v) > 0 {
			return event.DecodeValue(v[0])
		}
		return ""
	}
	l := Letter{
		Service: service, Sequence: seq, Stored: stored.UTC(), Data: data, Header: map[string][]string{},
		Error: text(headerError), Consumer: text(headerConsumer), DataOmitted: text(headerOmitted) != "",
	}
	// What cannot be read of the letter's own headers stays empty: the original matters more.
	l.Deliveries, _ = strconv.Atoi(text(headerDeliveries))
	l.First, _ = time.Parse(time.RFC3339Nano, text(headerFirst))
	l.Last, _ = time.Parse(time.RFC3339Nano, text(headerLast))
	for k, v := range header {
		switch k {
		case headerError, headerConsumer, headerDeliveries, headerFirst, headerLast, headerOmitted:
		default:
			if !strings.HasPrefix(k, "Nats-") {
				l.Header[k] = v
			}
		}
	}
	if e, err := event.FromMessage(l.Header, data); err == nil {
		l.Event = &e
	}
	return l
}
