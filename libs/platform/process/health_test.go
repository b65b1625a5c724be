package process_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
)

func TestReadiness(t *testing.T) {
	h := process.NewHealth(nil)
	var seen []bool
	h.OnChange(func(ready bool) { seen = append(seen, ready) })
	expect := func(what string, want map[string]string) {
		t.Helper()
		ready, got := h.Ready()
		if ready != (len(want) == 0) || !maps.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", what, ready, got, want)
		}
	}
	expect("without checks", map[string]string{"process": "starting"})
	postgres, nats := h.Check("postgres"), h.Check("nats")
	expect("registered", map[string]string{"postgres": "starting", "nats": "starting"})
	postgres(nil)
	nats(errors.New("no servers available"))
	expect("one is away", map[string]string{"nats": "no servers available"})
	nats(nil)
	expect("all here", nil)
	nats(nil)
	nats(errors.New("gone"))
	nats(nil)
	h.Stopping()
	expect("stopping", map[string]string{"process": "stopping"})
	if want := []bool{false, true, false, true, false}; !slices.Equal(seen, want) {
		t.Errorf("changes %v, want %v", seen, want)
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := process.NewHealth(nil)
		report := h.Check("postgres")
		time.AfterFunc(time.Minute, func() { report(nil) })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "postgres:starting") {
			t.Errorf("got %v", err)
		}
		if err := h.Wait(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestPages(t *testing.T) {
	tel, err := telemetry.Setup(t.Context(), telemetry.Options{Service: "s"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	h := process.NewHealth(tel.Metrics())
	report := h.Check("postgres")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, _ := get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz %d", code)
	}
	code, body := get("/readyz")
	var reasons map[string]string
	if err := json.Unmarshal([]byte(body), &reasons); err != nil || code != http.StatusServiceUnavailable || reasons["postgres"] != "starting" {
		t.Errorf("/readyz %d %q %v", code, body, err)
	}
	report(nil)
	if code, body := get("/readyz"); code != http.StatusOK || body != "{}\n" {
		t.Errorf("/readyz %d %q", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics %d", code)
	}
	if code, _ := get("/other"); code != http.StatusNotFound {
		t.Errorf("/other %d", code)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNoPagesWithoutAnAddress(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := process.NewHealth(nil).Run(ctx, ""); err != nil {
		t.Error(err)
	}
	if err := process.NewHealth(nil).Run(t.Context(), "256.0.0.1:1"); err == nil {
		t.Error("a bad address is accepted")
	}
}
