package process

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestReadyAsksTheHealthPage(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := NewHealth(nil)
	report := h.Check("postgres")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}

	report(errors.New("schema is behind"))
	var out strings.Builder
	if err := askReady(t.Context(), "0.0.0.0:"+port, &out); err == nil || !strings.Contains(err.Error(), "schema is behind") {
		t.Errorf("%v", err)
	}
	report(nil)
	if err := askReady(t.Context(), "0.0.0.0:"+port, &out); err != nil || out.String() != "ready\n" {
		t.Errorf("%q %v", &out, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := askReady(t.Context(), "0.0.0.0:"+port, &out); err == nil {
		t.Error("a service that is gone is ready")
	}
}
