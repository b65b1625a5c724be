// Package dev runs the whole platform in one process: the eight services, an
// embedded NATS server and a private Postgres. It is the same services with the
// same contracts as on many machines; only their addresses are sockets.
package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/services/gateway"
)

// DefaultAgentListen is where agents dial in, where the clients' door is the default too.
const DefaultAgentListen = "127.0.0.1:7434"

// stopGrace is how long the whole process may take to stop: running jobs get
// their kill grace first.
const stopGrace = 30 * time.Second

// Run runs the platform until ctx ends, and says on out when it is ready.
//
//	hodei dev ─┬─ postgres (a child, unix socket only)     data-dir/postgres
//	           ├─ NATS with JetStream (in this process)    data-dir/nats
//	           ├─ relay audit registry timeout-monitor provisioner dispatcher scheduler
//	           └─ gateway ◀── clients :7433      registry ◀── agents :7434
func Run(ctx context.Context, cfg Config, out io.Writer) (err error) {
	if cfg.DataDir == "" {
		if cfg.DataDir, err = DefaultDataDir(); err != nil {
			return err
		}
	}
	data, err := openData(cfg.DataDir)
	if err != nil {
		return err
	}
	defer data.close()
	agentListen, err := data.agentListen(cfg.AgentListen, cfg.Listen == gateway.DefaultListen)
	if err != nil {
		return err
	}
	tel, err := telemetry.Setup(ctx, telemetry.Options{Service: "dev", Version: process.Version(), LogLevel: cfg.LogLevel, LogFormat: cfg.LogFormat, LogWriter: os.Stderr})
	if err != nil {
		return err
	}
	g := &ground{cfg: cfg, log: tel.Log, logs: os.Stderr, grace: stopGrace, natsURL: cfg.NATSURL}
	began := time.Now()
	url, stopPostgres, err := openPostgres(ctx, cfg, data, tel.Log)
	if err != nil {
		return err
	}
	g.postgres = url
	defer func() { err = errors.Join(err, within(10*time.Second, stopPostgres)) }()
	if cfg.NATSURL == "" {
		nats, err := openNATS(cfg, data)
		if err != nil {
			return err
		}
		g.nats = nats
		defer func() {
			nats.Shutdown()
			nats.WaitForShutdown()
		}()
	}
	if g.sockets, err = os.MkdirTemp("/tmp", "hodei-"); err != nil {
		return fmt.Errorf("make the sockets' directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(g.sockets)) }()
	f, err := assemble(ctx, g, data, agentListen)
	if err != nil {
		return err
	}
	for _, close := range f.close {
		defer func() { err = errors.Join(err, within(time.Second, close)) }()
	}
	announce := lifecycle.Part{Name: "announcement", Run: func(ctx context.Context) error {
		if err := waitReady(ctx, cfg.Listen, f.health, out); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		fmt.Fprintf(out, "hodei is ready after %s: clients %s, agents %s, data %s\ntry: hodei run -- echo hello\n",
			time.Since(began).Round(10*time.Millisecond), cfg.Listen, agentListen, data.path)
		<-ctx.Done()
		fmt.Fprintln(out, "hodei is stopping: intake first, then running jobs are ended and queued again")
		return nil
	}}
	return lifecycle.Run(ctx, 2*stopGrace, tel.Log, append(f.parts, announce)...)
}

func within(d time.Duration, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return stop(ctx)
}
