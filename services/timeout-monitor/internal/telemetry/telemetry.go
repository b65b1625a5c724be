// Package telemetry is the timeout-monitor's ear: the heartbeats on HODEI_TELEMETRY.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
)

// askTimeout bounds one question to the stream.
const askTimeout = 3 * time.Second

// errDeaf says that heartbeats may have been missed.
var errDeaf = fault.New(fault.Unavailable, "the connection to the telemetry stream was interrupted")

// Heartbeats implements app.Heartbeats. It is safe for concurrent use.
type Heartbeats struct {
	nc *nats.Conn
	js jetstream.JetStream
	// replicas of the stream, where it has to be made.
	replicas int
	// known is the number of the connection that Listen's deaf was called for.
	known atomic.Uint64
}

// New returns the heartbeats of a connection, and JetStream on it. replicas is how many
// the stream gets where it has to be made.
func New(nc *nats.Conn, js jetstream.JetStream, replicas int) *Heartbeats {
	return &Heartbeats{nc: nc, js: js, replicas: replicas}
}

// Last implements app.Heartbeats. A connection that is new, or was lost while it
// asked, is an error: whoever asks must first hear that it was deaf.
func (h *Heartbeats) Last(ctx context.Context, workerID string) (time.Time, error) {
	connection := h.nc.Stats().Reconnects
	if h.nc.Status() != nats.CONNECTED || connection != h.known.Load() {
		return time.Time{}, errDeaf
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	s, err := h.js.Stream(ctx, bus.TelemetryStream)
	if err != nil {
		return time.Time{}, fmt.Errorf("look up stream %s: %w", bus.TelemetryStream, err)
	}
	m, err := s.GetLastMsgForSubject(ctx, bus.HeartbeatSubject(workerID))
	switch {
	case err != nil && !errors.Is(err, jetstream.ErrMsgNotFound):
		return time.Time{}, fmt.Errorf("read the last heartbeat of worker %s: %w", workerID, err)
	case h.nc.Stats().Reconnects != connection:
		return time.Time{}, errDeaf
	case err != nil:
		return time.Time{}, nil
	}
	return m.Time, nil
}

// Listen calls heard with each heartbeat that comes, and deaf at the beginning and
// whenever the connection is back after heartbeats could not be heard, until ctx ends.
func (h *Heartbeats) Listen(ctx context.Context, heard func(workerID string, stored time.Time), deaf func()) error {
	changed := h.nc.StatusChanged(nats.CONNECTED)
	defer h.nc.RemoveStatusListener(changed)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- bus.SubscribeTelemetry(ctx, h.js, bus.TelemetryConfig{Type: worker.Heartbeat{}.EventType(), Replicas: h.replicas}, func(t bus.Telemetry) {
			heard(t.Stream.ID, t.Stored)
		})
	}()
	for {
		connection := h.nc.Stats().Reconnects
		deaf()
		h.known.Store(connection)
		select {
		case <-changed:
		case err := <-ended:
			return err
		}
	}
}
