// Package chassis is what every service stands on: the event log, the bus, the
// gRPC door with the status of the service, and the order in which they start
// and stop. It knows no service and decides nothing.
package chassis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/migrations"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/call"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/process"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/incident"
	"hodei.dev/libs/service/letters"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// Config is what every service's configuration embeds.
type Config struct {
	config.Common `yaml:",inline"`
	// NATSReplicas is on how many servers of a NATS cluster each stream is kept that the
	// service makes: 1, 3 or 5, the same for all services. Default 1.
	NATSReplicas int `yaml:"nats_replicas" env:"HODEI_NATS_REPLICAS"`
	// InProcessNATS is used instead of nats_url by a process that has the server in it.
	InProcessNATS nats.InProcessConnProvider `yaml:"-"`
}

// DefaultConfig returns the defaults of the common part.
func DefaultConfig() Config { return Config{Common: config.DefaultCommon(), NATSReplicas: 1} }

// Validate reports what every service needs and is missing.
func (c *Config) Validate() error {
	wrong := c.Require("postgres_url")
	if c.InProcessNATS == nil {
		wrong = append(wrong, c.Require("nats_url")...)
	}
	if n := c.NATSReplicas; n != 1 && n != 3 && n != 5 {
		wrong.Add("nats_replicas", "%d: 1, 3 or 5", n)
	}
	return wrong.Err("the configuration")
}

// Spec names a service and its schema.
type Spec struct {
	// Name is the service's, such as "scheduler".
	Name string
	// Schema and Migrations are its own part of the database; both empty where it has none.
	Schema     string
	Migrations fs.FS
	// ServesWithoutNATS: what it serves needs Postgres alone, so it stays ready while NATS
	// is away.
	ServesWithoutNATS bool
}

// Migrate brings the event log's schema and the service's own up to date. It
// may be called by several processes at once.
func Migrate(ctx context.Context, spec Spec, url string) error {
	if err := store.Migrate(ctx, url); err != nil {
		return fmt.Errorf("migrate the event log: %w", err)
	}
	if spec.Migrations == nil {
		return nil
	}
	if err := migrations.Up(ctx, url, spec.Schema, spec.Migrations); err != nil {
		return fmt.Errorf("migrate schema %s: %w", spec.Schema, err)
	}
	return nil
}

// Chassis is a service's ground. Made by [Open]; its fields are set once.
type Chassis struct {
	Name   string
	Log    *slog.Logger
	Tel    *telemetry.Telemetry
	Health *process.Health
	// Store is the event log; its pool serves the service's own schema as well.
	Store *store.Store
	NC    *nats.Conn
	JS    jetstream.JetStream
	// Incidents records what happens to the service's consumers: give its Report to each of them.
	Incidents *incident.Reporter
	// Replicas is on how many servers the streams are kept that the service makes.
	Replicas int
	// RPC is the service's gRPC door; nil where it listens nowhere.
	RPC *rpc.Server

	grace    time.Duration
	wired    func(err error)
	reached  func(err error) // whether NATS is there; nil where that does not matter
	version  string
	started  time.Time
	active   atomic.Bool
	mu       sync.Mutex // guards what follows
	onStatus []func(ctx context.Context, s *platformv1.ServiceStatus)
	examine  []func(ctx context.Context, s *platformv1.ServiceStatus) // as onStatus, for questions that examine
}

// Open connects the service to its ground. It waits, saying why, for a Postgres
// that is away or a schema that is behind, so that services start in any order;
// NATS is connected in the background. An error means that ctx has ended or that
// the configuration is wrong.
func Open(ctx context.Context, spec Spec, cfg Config, env process.Env) (*Chassis, error) {
	c := &Chassis{
		Name: spec.Name, Log: env.Log, Tel: env.Tel, Health: env.Health,
		Replicas: cfg.NATSReplicas, grace: time.Duration(cfg.ShutdownGrace), version: env.Version, started: time.Now(),
	}
	// Held until Run: by then every part has registered its own check, so that
	// readiness cannot flash in between.
	c.wired = env.Health.Check("wiring")
	if !spec.ServesWithoutNATS {
		c.reached = env.Health.Check("nats")
	}
	nc, err := bus.Connect(bus.Config{URL: cfg.NATSURL, InProcess: cfg.InProcessNATS, Name: "hodei-" + spec.Name, Log: env.Log})
	if err != nil {
		return nil, err
	}
	c.NC = nc
	if c.JS, err = jetstream.New(nc); err != nil {
		c.close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	if err := c.openStore(ctx, spec, cfg); err != nil {
		c.close()
		return nil, err
	}
	c.Incidents = incident.New(c.Store, spec.Name, 0, env.Log)
	if cfg.Listen != "" {
		c.RPC, err = rpc.NewServer(rpc.Options{Listen: cfg.Listen, Log: env.Log, Tel: env.Tel, Translate: store.Away})
		if err != nil {
			c.close()
			return nil, err
		}
		platformv1.RegisterStatusServiceServer(c.RPC.GRPC(), status{chassis: c})
		env.Health.OnChange(c.RPC.SetServing)
	}
	return c, nil
}

// openStore opens the log and checks the service's own schema, again and again
// until both are there.
func (c *Chassis) openStore(ctx context.Context, spec Spec, cfg Config) error {
	ready := c.Health.Check("postgres")
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		s, err := store.Open(ctx, store.Config{
			URL: cfg.PostgresURL, OnCommit: bus.Nudger(c.NC), Log: c.Log, Meter: c.Tel.Meter("hodei.dev/eventing"), Name: "hodei-" + spec.Name,
		})
		if err == nil && spec.Migrations != nil {
			if err = migrations.Check(ctx, s.Pool(), spec.Schema, spec.Migrations); err != nil {
				s.Close()
			}
		}
		if err == nil {
			c.Store = s
			ready(nil)
			return nil
		}
		if errors.Is(err, fault.Invalid) || ctx.Err() != nil {
			return fmt.Errorf("open the event log: %w", err)
		}
		ready(err)
		c.Log.WarnContext(ctx, "the event log is not there yet, trying again", "error", err, "in", wait)
		if !pause(ctx, wait) {
			return fmt.Errorf("open the event log: %w", ctx.Err())
		}
	}
}

// Meta is the context of what a call appends: who asked, under which
// correlation id, in which trace.
func (c *Chassis) Meta(ctx context.Context) event.Meta {
	from := call.From(ctx)
	m := event.Meta{Source: c.Name, CorrelationID: from.CorrelationID, CausationID: from.CausationID, Actor: from.Actor}
	m.TraceParent, m.TraceState = telemetry.Inject(ctx)
	return m
}

// Letters keeps what the service cannot handle in the event log.
func (c *Chassis) Letters() *letters.Letters { return letters.New(c.Store, c.Name) }

// OnStatus has fn fill in its part of the service's status at each question.
func (c *Chassis) OnStatus(fn func(ctx context.Context, s *platformv1.ServiceStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onStatus = append(c.onStatus, fn)
}

// OnExamine has fn look for what is off when somebody asks for it, and add it to
// the findings. It may take longer than a status.
func (c *Chassis) OnExamine(fn func(ctx context.Context, s *platformv1.ServiceStatus)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.examine = append(c.examine, fn)
}

// EnsureStreams makes the streams that the service needs beside the events stream, as
// [bus.Ensure] does.
func (c *Chassis) EnsureStreams(ctx context.Context) error {
	return bus.Ensure(ctx, c.JS, c.Name, c.Replicas)
}

// Exclusive makes a part of what only one replica of the service may do at a
// time. It stands by, takes over, and begins again with backoff where run fails
// or the role is lost; while another replica has the role, the part does not hold the
// service back from being ready, but while nobody can tell, because Postgres is away,
// it does.
func (c *Chassis) Exclusive(name string, run func(ctx context.Context) error) lifecycle.Part {
	report := c.Health.Check(name)
	return lifecycle.Part{Name: name, Run: func(ctx context.Context) error {
		wait := 50 * time.Millisecond
		for {
			began := time.Now()
			err := c.Store.Exclusive(ctx, c.Name+"/"+name, report, func(ctx context.Context) error {
				c.active.Store(true)
				defer c.active.Store(false)
				report(nil)
				return run(ctx)
			})
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = fault.New(fault.Internal, "part %s has returned", name)
			}
			report(err)
			if time.Since(began) > 30*time.Second {
				wait = 50 * time.Millisecond
			}
			c.Log.WarnContext(ctx, "a part has failed and begins again", "part", name, "error", err, "in", wait)
			if !pause(ctx, wait) {
				return nil
			}
			wait = min(2*wait, 5*time.Second)
		}
	}}
}

// Run runs the parts until ctx ends, and the gRPC door after them; they stop in
// the opposite order. It closes everything before it returns.
func (c *Chassis) Run(ctx context.Context, parts ...lifecycle.Part) error {
	defer c.close()
	c.wired(nil)
	parts = append([]lifecycle.Part{{Name: "incidents", Run: c.Incidents.Run}}, parts...)
	if c.reached != nil {
		parts = append([]lifecycle.Part{{Name: "nats", Run: func(ctx context.Context) error {
			return bus.WatchConnected(ctx, c.NC, c.reached)
		}}}, parts...)
	}
	if c.RPC != nil {
		parts = append(parts, lifecycle.Part{Name: "grpc", Run: c.RPC.Run})
	}
	return lifecycle.Run(ctx, c.grace, c.Log, parts...)
}

// Close frees what Open took, for a service that never came to Run.
func (c *Chassis) Close() {
	if c.RPC != nil {
		c.RPC.Close()
	}
	c.close()
}

func (c *Chassis) close() {
	if c.Store != nil {
		c.Store.Close()
	}
	if c.NC != nil {
		c.NC.Close()
	}
}

// status serves StatusService for this service alone.
type status struct {
	platformv1.UnimplementedStatusServiceServer
	chassis *Chassis
}

// GetStatus answers from what the service knows; the head and the dead letters that
// are open are read from the log, so every replica says the same of them.
func (s status) GetStatus(ctx context.Context, req *platformv1.GetStatusRequest) (*platformv1.GetStatusResponse, error) {
	c := s.chassis
	ready, problems := c.Health.Ready()
	out := &platformv1.ServiceStatus{
		Name: c.Name, Version: c.version, Ready: ready, Problems: problems, Role: "standby", StartedAt: timestamppb.New(c.started),
		// Whose CPU it is, so that what one process runs is not counted twice.
		Figures: map[string]int64{"process_id": int64(os.Getpid()), "process_cpu_ms": cpuMillis()},
	}
	if c.active.Load() {
		out.Role = "active"
	}
	head, err := c.Store.Head(ctx)
	if err != nil {
		out.Problems["postgres"] = err.Error()
	} else if open, err := letters.NewTally(c.Store).Count(ctx); err != nil {
		out.Problems["dead letters"] = err.Error()
	} else {
		for holder, n := range open {
			if holder.Service == c.Name {
				out.DeadLetters += int64(n)
			}
		}
	}
	out.Head = head
	c.mu.Lock()
	fill := slices.Clone(c.onStatus)
	if req.GetExamine() {
		fill = append(fill, c.examine...)
	}
	c.mu.Unlock()
	for _, f := range fill {
		f(ctx, out)
	}
	return &platformv1.GetStatusResponse{Services: []*platformv1.ServiceStatus{out}}, nil
}

// cpuMillis is the CPU time that this process has used.
func cpuMillis() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return (u.Utime.Nano() + u.Stime.Nano()) / 1e6
}

// pause waits, with jitter, and tells whether ctx still goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
