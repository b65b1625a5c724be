package process

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"hodei.dev/libs/domain/fault"
)

// askReady asks the health page of the service that listens on this machine. It
// is what a container's health check runs: such images have no other program.
func askReady(ctx context.Context, listen string, out io.Writer) error {
	if listen == "" {
		return fault.New(fault.Invalid, "health_listen is not set: the service has no health page to ask; set HODEI_HEALTH_LISTEN")
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return fmt.Errorf("health_listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("asking whether the service is ready: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("asking whether the service is ready: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("asking whether the service is ready: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fault.New(fault.Unavailable, "the service is not ready: %s", strings.TrimSpace(string(body)))
	}
	_, err = fmt.Fprintln(out, "ready")
	return err
}
