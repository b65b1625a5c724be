package dev

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc"

	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// askEvery is how often the services are asked while the process starts or stops.
const askEvery = 20 * time.Millisecond

// sayAfter is how long a start may take before it says what it waits for.
const sayAfter = 5 * time.Second

// waitReady blocks until every service is ready and has handled the log up to
// the head that it had when the services were up.
func waitReady(ctx context.Context, listen string, health map[string]*process.Health, out io.Writer) error {
	slow := time.AfterFunc(sayAfter, func() { sayWaiting(health, out) })
	defer slow.Stop()
	for name, h := range health {
		if err := h.Wait(ctx); err != nil {
			return fmt.Errorf("service %s: %w", name, err)
		}
	}
	conn, err := rpc.Dial(listen)
	if err != nil {
		return err
	}
	defer conn.Close()
	var head int64
	return ask(ctx, conn, func(services []*platformv1.ServiceStatus) (bool, string) {
		var behind []string
		for _, s := range services {
			if head == 0 {
				head = max(head, s.GetHead())
			}
			if s.GetUnreachable() || s.GetLag() > 0 && s.GetPosition() < head {
				behind = append(behind, fmt.Sprintf("%s at %d of %d", s.GetName(), s.GetPosition(), head))
			}
		}
		return len(behind) == 0, strings.Join(behind, ", ")
	})
}

// sayWaiting says what the start waits for.
func sayWaiting(health map[string]*process.Health, out io.Writer) {
	services := map[string][]string{}
	for name, h := range health {
		_, reasons := h.Ready()
		for _, why := range reasons {
			services[why] = append(services[why], name)
		}
	}
	for _, why := range slices.Sorted(maps.Keys(services)) {
		slices.Sort(services[why])
		fmt.Fprintf(out, "hodei is still starting: %s: %s\n", strings.Join(slices.Compact(services[why]), ", "), why)
	}
}

// settle blocks until no job is on a worker any more, or ctx ends. It asks the
// log itself: a consumer's position says only what it has been told of.
func settle(ctx context.Context, postgres string) error {
	db, err := pgx.Connect(ctx, postgres)
	if err != nil {
		return fmt.Errorf("see whether jobs are still on workers: %w", err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		var live int
		err := db.QueryRow(ctx, `select count(*) from hodei.streams where not terminal and stream_type = 'job' and state in ('ASSIGNED', 'RUNNING')`).Scan(&live)
		if err != nil {
			return fmt.Errorf("see whether jobs are still on workers: %w", err)
		}
		if live == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d jobs are still on workers: %w", live, ctx.Err())
		}
	}
}

// ask asks for the status until enough says that it is, or ctx ends.
func ask(ctx context.Context, conn *grpc.ClientConn, enough func([]*platformv1.ServiceStatus) (bool, string)) error {
	client := platformv1.NewStatusServiceClient(conn)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		waiting := ""
		resp, err := client.GetStatus(ctx, &platformv1.GetStatusRequest{})
		if err != nil {
			waiting = "an answer (" + err.Error() + ")"
		} else {
			var ok bool
			if ok, waiting = enough(resp.GetServices()); ok {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", waiting, ctx.Err())
		}
	}
}
