package dev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/pgserver"
)

// database is the one that the platform keeps everything in.
const database = "hodei"

// openPostgres returns the URL of the database: the one that was given, else a
// private server's on a unix socket, and how to stop that.
func openPostgres(ctx context.Context, cfg Config, data *dataDir, log *slog.Logger) (string, func(context.Context) error, error) {
	if cfg.PostgresURL != "" {
		return cfg.PostgresURL, func(context.Context) error { return nil }, nil
	}
	s, err := pgserver.Start(ctx, pgserver.Config{DataDir: data.sub("postgres")})
	if err != nil {
		return "", nil, fmt.Errorf("start a private postgres: %w", err)
	}
	if s.Adopted() {
		log.InfoContext(ctx, "adopted the postgres that was left running", "pid", s.PID())
	}
	if err := createDatabase(ctx, s.URL("postgres")); err != nil {
		return "", nil, errors.Join(err, s.Stop(ctx))
	}
	return s.URL(database), s.Stop, nil
}

func createDatabase(ctx context.Context, admin string) error {
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return fmt.Errorf("connect to the private postgres: %w", err)
	}
	defer conn.Close(ctx)
	var there bool
	if err := conn.QueryRow(ctx, `select exists (select from pg_database where datname = $1)`, database).Scan(&there); err != nil {
		return fmt.Errorf("look for database %s: %w", database, err)
	}
	if there {
		return nil
	}
	if _, err := conn.Exec(ctx, `create database `+database); err != nil {
		return fmt.Errorf("create database %s: %w", database, err)
	}
	return nil
}

// openNATS starts a server inside this process, with its streams on disk. It
// has a port only where one was asked for.
func openNATS(cfg Config, data *dataDir) (*server.Server, error) {
	opts := &server.Options{
		ServerName: "hodei-dev", JetStream: true, StoreDir: data.sub("nats"), DontListen: cfg.NATSListen == "", NoSigs: true, NoLog: true,
	}
	if cfg.NATSListen != "" {
		host, port, err := net.SplitHostPort(cfg.NATSListen)
		if err != nil {
			return nil, fault.New(fault.Invalid, "nats-listen %q: write it like 127.0.0.1:4222", cfg.NATSListen)
		}
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fault.New(fault.Invalid, "nats-listen %q: the port is not a number", cfg.NATSListen)
		}
		opts.Host = host
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("make the NATS server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		return nil, fault.New(fault.Unavailable, "the NATS server in %s did not come up: see whether the disk is full", opts.StoreDir)
	}
	return s, nil
}
