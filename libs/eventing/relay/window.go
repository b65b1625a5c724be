package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
)

// windowBytes bounds what waits for acknowledgements, beside their number.
const windowBytes = 16 << 20

const (
	errCodeTooLarge       jetstream.ErrorCode = 10054 // message size exceeds maximum allowed
	errCodeHeaderTooLarge jetstream.ErrorCode = 10097 // header size exceeds maximum allowed
)

// window publishes without waiting for each acknowledgement. Each message
// expects the sequence of the one before it, so the server takes them in order or
// not at all, and an acknowledgement of one is an acknowledgement of all before it.
//
// It is used by one goroutine and thrown away after the first thing that is not
// as expected; what is still under way then is harmless, because its content
// belongs to the sequence that it expects.
type window struct {
	r     *Relay
	base  int64
	inbox string
	sub   *nats.Subscription
	acks  chan *nats.Msg

	sent, acked uint64  // sequences
	bytes       int     // of the messages between acked and sent
	sizes       []int   // by sequence modulo the window's length
	times       []int64 // when it was sent, in ns; the same index
}

func (r *Relay) newWindow(stream bus.Events) (*window, error) {
	w := &window{
		r: r, base: stream.Base, inbox: r.cfg.NC.NewInbox(), acks: make(chan *nats.Msg, 4*r.cfg.Window),
		sent: stream.Last, acked: stream.Last, sizes: make([]int, r.cfg.Window), times: make([]int64, r.cfg.Window),
	}
	var err error
	if w.sub, err = r.cfg.NC.ChanSubscribe(w.inbox+".*", w.acks); err != nil {
		return nil, fmt.Errorf("listen for acknowledgements: %w", err)
	}
	return w, nil
}

func (w *window) close() { _ = w.sub.Unsubscribe() }

// run publishes batches until ctx ends, or with the reason to start over.
func (w *window) run(ctx context.Context, batches <-chan []event.Event, trouble <-chan error) error {
	stalled := time.NewTicker(w.r.cfg.AckTimeout / 4)
	defer stalled.Stop()
	progress := time.Now()
	var todo []event.Event
	for {
		for len(todo) > 0 && w.room() {
			if w.sent == w.acked {
				progress = time.Now()
			}
			if err := w.publish(ctx, todo[0]); err != nil {
				return err
			}
			todo = todo[1:]
		}
		next := batches
		if len(todo) > 0 {
			next = nil
		}
		select {
		case todo = <-next:
		case m := <-w.acks:
			if err := w.ack(ctx, m); err != nil {
				return err
			}
			progress = time.Now()
		case <-stalled.C:
			if w.sent > w.acked && time.Since(progress) > w.r.cfg.AckTimeout {
				return fmt.Errorf("no acknowledgement for %s", w.r.cfg.AckTimeout)
			}
		case err := <-trouble:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *window) room() bool {
	return w.sent-w.acked < uint64(len(w.sizes)) && (w.bytes < windowBytes || w.sent == w.acked)
}

// publish sends one event, or its tombstone where it can never be published.
func (w *window) publish(ctx context.Context, e event.Event) error {
	if e.Position != w.base+int64(w.sent)+1 {
		return fmt.Errorf("read position %d, but the stream is at %d", e.Position, w.base+int64(w.sent))
	}
	reason, refused := w.r.refused[e.Position]
	if !refused {
		m := &nats.Msg{Subject: bus.EventSubject(e.Namespace, e.Stream.Type, e.Type), Header: e.Header(), Data: e.Data}
		reason = w.unpublishable(e, m)
		if reason == "" {
			err := w.send(m)
			if !errors.Is(err, nats.ErrMaxPayload) && !errors.Is(err, nats.ErrBadSubject) {
				return err
			}
			reason = err.Error()
		}
	}
	return w.bury(ctx, e, reason)
}

// bury records an event that can never be published and sends its tombstone, so
// that the rest goes on.
func (w *window) bury(ctx context.Context, e event.Event, reason string) error {
	if err := w.r.cfg.DeadLetters.Record(ctx, e, reason); err != nil {
		return fmt.Errorf("keep position %d as a dead letter: %w", e.Position, err)
	}
	w.r.m.tombstones.Add(ctx, 1)
	w.r.log.Error("an event can never be published: its tombstone is, and it stays in the log",
		"position", e.Position, "id", e.ID, "type", e.Type, "stream", e.Stream, "reason", reason, "alert", true)
	return w.send(&nats.Msg{Subject: bus.TombstoneSubject(), Header: e.Tombstone(reason)})
}

func (w *window) send(m *nats.Msg) error {
	next := w.sent + 1
	m.Reply = w.inbox + "." + strconv.FormatUint(next, 10)
	m.Header[jetstream.ExpectedStreamHeader] = []string{bus.EventsStream}
	m.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(w.sent, 10)}
	if err := w.r.cfg.NC.PublishMsg(m); err != nil {
		return fmt.Errorf("publish position %d: %w", w.base+int64(next), err)
	}
	i := next % uint64(len(w.sizes))
	w.sizes[i], w.times[i] = len(m.Data), time.Now().UnixNano()
	w.bytes += len(m.Data)
	w.sent = next
	return nil
}

// unpublishable says why the server would refuse a message for ever; "" where it would not.
func (w *window) unpublishable(e event.Event, m *nats.Msg) string {
	for name, token := range map[string]string{"namespace": e.Namespace, "stream type": e.Stream.Type, "type": e.Type} {
		if !bus.ValidToken(token) {
			return fmt.Sprintf("%s %q cannot be part of a subject", name, token)
		}
	}
	size := len(m.Data) + 200 // the two headers that send adds, and the frame
	for k, v := range m.Header {
		size += len(k) + len(v[0]) + 4
	}
	if most := w.r.cfg.NC.MaxPayload(); most > 0 && int64(size) > most {
		return fmt.Sprintf("%d bytes are more than the server's limit of %d", size, most)
	}
	return ""
}

// ack takes one answer of the server. Its error is the reason to start over.
func (w *window) ack(ctx context.Context, m *nats.Msg) error {
	seq, err := strconv.ParseUint(m.Subject[strings.LastIndexByte(m.Subject, '.')+1:], 10, 64)
	if err != nil {
		return nil // not an answer to anything sent here
	}
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		return fmt.Errorf("publish position %d: %w", w.base+int64(seq), nats.ErrNoResponders)
	}
	var answer struct {
		Seq   uint64              `json:"seq"`
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fmt.Errorf("read the acknowledgement of position %d: %w", w.base+int64(seq), err)
	}
	if answer.Error != nil {
		if c := answer.Error.ErrorCode; c == errCodeTooLarge || c == errCodeHeaderTooLarge {
			w.r.refused[w.base+int64(seq)] = answer.Error.Description
		}
		return fmt.Errorf("publish position %d: %w", w.base+int64(seq), answer.Error)
	}
	if answer.Seq != seq {
		return fmt.Errorf("position %d was stored as sequence %d instead of %d", w.base+int64(seq), answer.Seq, seq)
	}
	if seq <= w.acked || seq > w.sent {
		return nil
	}
	w.r.m.published.Add(ctx, int64(seq-w.acked))
	w.r.m.latency.Record(ctx, float64(time.Now().UnixNano()-w.times[seq%uint64(len(w.times))])/1e9)
	for ; w.acked < seq; w.acked++ {
		w.bytes -= w.sizes[(w.acked+1)%uint64(len(w.sizes))]
	}
	if len(w.r.refused) > 0 {
		delete(w.r.refused, w.base+int64(seq))
	}
	w.r.update(func(s *Status) { s.Position = w.base + int64(seq) })
	return nil
}
