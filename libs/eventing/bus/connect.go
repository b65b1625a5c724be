// Package bus is NATS as this system uses it: the connection, the streams, and
// the names of everything on them (names.go, and nowhere else).
//
// It promises that processes may start in any order on an empty server: a
// connection is made for ever, streams are made by whoever needs them, any number
// of times. It is transport only: what must not be lost stands in Postgres.
package bus

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/fault"
)

// Config says how to reach NATS.
type Config struct {
	// URL is one or more addresses, comma-separated. Ignored where InProcess is set.
	URL string
	// InProcess connects to a server in this process, without a socket.
	InProcess nats.InProcessConnProvider
	// Name is shown by the server's monitoring, such as "hodei-relay".
	Name string
	// Options are added last: credentials, TLS.
	Options []nats.Option
	// Log gets losses and returns of the connection. Default slog.Default().
	Log *slog.Logger
}

// reconnectBuffer bounds, in bytes, what is published to a server that is away and
// kept for its return; beyond it publishing fails with nats.ErrReconnectBufExceeded.
// It is for commands and telemetry: events wait in the log.
const reconnectBuffer = 8 << 20

// Connect returns a connection that reconnects for ever. It does not wait for a
// server: where none answers yet it goes on trying in the background (see
// [WaitConnected]). An error means that the configuration is wrong. The caller
// closes the connection.
func Connect(cfg Config) (*nats.Conn, error) {
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	log = log.With("nats", cfg.Name)
	opts := []nats.Option{
		nats.Name(cfg.Name),
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		nats.CustomReconnectDelay(reconnectDelay),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.Timeout(5 * time.Second),
		nats.DrainTimeout(5 * time.Second),
		nats.ReconnectBufSize(reconnectBuffer),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if !nc.IsClosed() {
				log.Warn("lost the connection to NATS, reconnecting", "error", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("reconnected to NATS", "server", nc.ConnectedServerName()) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS reports an error", "error", err, "subject", subject)
		}),
	}
	if cfg.InProcess != nil {
		opts = append(opts, nats.InProcessServer(cfg.InProcess))
	}
	nc, err := nats.Connect(cfg.URL, append(opts, cfg.Options...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	return nc, nil
}

// reconnectDelay grows from 20 ms to 2 s; the jitter keeps a fleet from
// returning all at once.
func reconnectDelay(attempts int) time.Duration {
	d := 20 * time.Millisecond << min(attempts, 7)
	d = min(d, 2*time.Second)
	return d/2 + rand.N(d/2)
}

// WaitConnected returns nil once nc is connected, else ctx's error.
func WaitConnected(ctx context.Context, nc *nats.Conn) error {
	changed := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)
	for {
		switch nc.Status() {
		case nats.CONNECTED:
			return nil
		case nats.CLOSED:
			return nats.ErrConnectionClosed
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for NATS: %w", ctx.Err())
		}
	}
}

// WatchConnected calls report with nil while nc is connected and with ErrLost while it
// is not, at once and with every change, until ctx ends.
func WatchConnected(ctx context.Context, nc *nats.Conn, report func(err error)) error {
	changed := nc.StatusChanged(nats.CONNECTED, nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)
	for {
		if nc.Status() == nats.CONNECTED {
			report(nil)
		} else {
			report(ErrLost)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// ErrLost is the cause of a context that [CancelWhenLost] ended.
var ErrLost = fault.New(fault.Unavailable, "lost the connection to NATS")

// CancelWhenLost waits until nc is not connected and then cancels with ErrLost,
// or nats.ErrConnectionClosed where it was closed for good; it returns when ctx
// ends. What was asked of a lost connection gets no answer, so whoever waits for
// one need not wait for its timeout.
func CancelWhenLost(ctx context.Context, nc *nats.Conn, cancel context.CancelCauseFunc) {
	changed := nc.StatusChanged(nats.DISCONNECTED, nats.RECONNECTING, nats.CLOSED)
	defer nc.RemoveStatusListener(changed)
	for nc.Status() == nats.CONNECTED {
		select {
		case <-changed:
			if nc.IsClosed() {
				break
			}
			cancel(ErrLost)
			return
		case <-ctx.Done():
			return
		}
	}
	if nc.IsClosed() {
		cancel(nats.ErrConnectionClosed)
		return
	}
	cancel(ErrLost)
}

// Nudger returns a function that tells the relay how far the log has grown. It
// never blocks on the network and never fails: a lost nudge is found by the
// relay's sweep. It has the form of store.Config.OnCommit.
func Nudger(nc *nats.Conn) func(position int64) {
	return func(position int64) {
		if !nc.IsConnected() {
			return // the relay reads when it is back; what was kept for it would be of no use then
		}
		_ = nc.Publish(NudgeSubject, strconv.AppendInt(nil, position, 10))
	}
}

// OnNudge calls fn with each position that is announced, until the returned
// subscription ends. fn must return at once.
func OnNudge(nc *nats.Conn, fn func(position int64)) (*nats.Subscription, error) {
	sub, err := nc.Subscribe(NudgeSubject, func(m *nats.Msg) {
		if p, err := strconv.ParseInt(string(m.Data), 10, 64); err == nil {
			fn(p)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen for nudges: %w", err)
	}
	return sub, nil
}
