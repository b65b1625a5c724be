package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"hodei.dev/libs/domain/fault"
)

// errStarting is the reason of a check that has not reported yet.
var errStarting = fault.New(fault.Unavailable, "starting")

// Health is whether a service is ready, as named checks that its parts report. It
// is ready when there is at least one check and the last report of every one was
// nil; so register all checks before the first of them reports. Nothing polls.
// Made by [NewHealth]; safe for concurrent use.
type Health struct {
	metrics http.Handler

	mu       sync.Mutex // guards what follows
	checks   map[string]error
	stopping bool
	ready    bool
	changed  chan struct{} // closed and replaced when ready changes
	watchers []func(ready bool)
}

// NewHealth returns the health of a service without checks, that is, not ready.
// metrics is served as /metrics; nil serves none.
func NewHealth(metrics http.Handler) *Health {
	return &Health{metrics: metrics, checks: map[string]error{}, changed: make(chan struct{})}
}

// Check registers a check and returns how its owner reports: nil for ready, else
// the reason, as often as it changes. Until the first report the reason is
// "starting". A name that is taken is the same check, starting again.
func (h *Health) Check(name string) (report func(err error)) {
	set := func(err error) {
		h.update(func() { h.checks[name] = err })
	}
	set(errStarting)
	return set
}

// OnChange has f called with the current readiness and with every change, in order.
// f must not block and not call h.
func (h *Health) OnChange(f func(ready bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers = append(h.watchers, f)
	f(h.ready)
}

// Stopping makes the service not ready for good, so that no new work is sent to it
// while it drains.
func (h *Health) Stopping() { h.update(func() { h.stopping = true }) }

func (h *Health) update(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	ready := len(h.reasons()) == 0
	if ready == h.ready {
		return
	}
	h.ready = ready
	close(h.changed)
	h.changed = make(chan struct{})
	for _, f := range h.watchers {
		f(ready)
	}
}

// reasons why it is not ready; the caller holds mu.
func (h *Health) reasons() map[string]string {
	out := map[string]string{}
	for name, err := range h.checks {
		if err != nil {
			out[name] = err.Error()
		}
	}
	switch {
	case h.stopping:
		out["process"] = "stopping"
	case len(h.checks) == 0:
		out["process"] = errStarting.Error()
	}
	return out
}

// Ready reports whether the service is ready and, where it is not, the reason of
// each check that is not.
func (h *Health) Ready() (bool, map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	reasons := h.reasons()
	return len(reasons) == 0, reasons
}

// Wait blocks until the service is ready. When ctx ends first, the error is ctx's
// and names what it waited for.
func (h *Health) Wait(ctx context.Context) error {
	for {
		h.mu.Lock()
		ready, changed := h.ready, h.changed
		h.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			_, reasons := h.Ready()
			return fmt.Errorf("waiting until ready, still %v: %w", reasons, ctx.Err())
		}
	}
}

// Handler serves /healthz (200 while the process lives), /readyz (200, or 503 with
// the reasons as a JSON object by check) and /metrics.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ready, reasons := h.Ready()
		w.Header().Set("Content-Type", "application/json")
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		// An error is the client's broken connection: nobody is left to tell.
		_ = json.NewEncoder(w).Encode(reasons)
	})
	if h.metrics != nil {
		mux.Handle("GET /metrics", h.metrics)
	}
	return mux
}

// Run serves Handler on listen ("host:port") until ctx ends; an empty listen serves
// nothing and just waits. It fails where the address cannot be taken.
func (h *Health) Run(ctx context.Context, listen string) error {
	if listen == "" {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listening for health checks: %w", err)
	}
	return h.Serve(ctx, l)
}

// Serve is Run on a listener that is already open; it closes it.
func (h *Health) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: h.Handler(), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serving health checks: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := srv.Shutdown(drain); errors.Is(err, context.DeadlineExceeded) {
		srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving health checks: %w", err)
	}
	return nil
}
