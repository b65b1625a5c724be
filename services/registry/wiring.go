package registry

import (
	"context"
	"crypto/rand"
	"fmt"
	random "math/rand/v2"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/platform/rpc"
	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/libs/service/chassis"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/registry/internal/app"
	"hodei.dev/services/registry/internal/consume"
	"hodei.dev/services/registry/internal/logs"
	"hodei.dev/services/registry/internal/nats"
	"hodei.dev/services/registry/internal/postgres"
	doors "hodei.dev/services/registry/internal/rpc"
	"hodei.dev/services/registry/internal/session"
)

// Validate reports what registry cannot do without, beside the common part.
func (c *Config) Validate() error {
	var wrong fault.Fields
	if c.AgentListen == "" {
		wrong.Add("agent_listen", "is required: agents have to dial in somewhere")
	}
	if strings.ContainsAny(c.AgentAddress, " \t") {
		wrong.Add("agent_address", `%q must be "host:port" or "unix:///path"`, c.AgentAddress)
	}
	if c.LogRetention < 1 || !c.LogRetention.IsNone() && c.LogRetention.Std() < 24*time.Hour {
		wrong.Add("log_retention", `must be at least 24h, or "none"`)
	}
	if err := c.Config.Validate(); err != nil {
		return err
	}
	return wrong.Err("the configuration")
}

// retention is 0 where logs are kept for ever.
func (c *Config) retention() time.Duration {
	if c.LogRetention.IsNone() {
		return 0
	}
	return c.LogRetention.Std()
}

// wiring is the parts of a running registry.
type wiring struct {
	c          *chassis.Chassis
	metrics    *metrics
	list       *postgres.Workers
	chunks     *postgres.Chunks
	projection *projection.Projection
	reactions  *consumer.Consumer
	jobHub     *nats.Hub
	workerHub  *nats.Hub
	ingest     *logs.Ingest
	keeper     *logs.Keeper
	sessions   *session.Manager
	door       *rpc.Server
}

// wire makes the parts.
func wire(c *chassis.Chassis, cfg Config) (*wiring, error) {
	pool := c.Store.Pool()
	credentials, chunks, list := postgres.NewCredentials(pool), postgres.NewChunks(pool, time.Now), postgres.NewWorkers(pool)
	reach, live := nats.NewSessions(c.NC), nats.NewLive(c.NC, c.Log)
	a := &app.App{Log: c.Store, Credentials: credentials, Sessions: reach, Now: time.Now, Jitter: random.Float64, Logger: c.Log}
	w := &wiring{c: c, list: list, chunks: chunks}
	var err error
	if w.metrics, err = newMetrics(c.Tel); err != nil {
		return nil, fmt.Errorf("make the instruments: %w", err)
	}
	if w.projection, err = consume.Workers(c, list); err != nil {
		return nil, fmt.Errorf("make the projection: %w", err)
	}
	if w.reactions, err = consume.Reactions(c, a); err != nil {
		return nil, fmt.Errorf("make the consumer: %w", err)
	}
	w.jobHub, w.workerHub = nats.NewHub(c.JS, c.Log, consume.JobTypes()...), nats.NewHub(c.JS, c.Log, consume.WorkerTypes()...)
	w.ingest = logs.NewIngest(chunks, live, c.Log, w.metrics.stored)
	w.keeper = &logs.Keeper{Partitions: chunks, Retention: cfg.retention(), Now: time.Now, Log: c.Log, Report: c.Health.Check("log days")}
	w.sessions = &session.Manager{
		App: a, Sessions: reach, Beats: credentials, Replica: replica(), Now: time.Now, Log: c.Log,
		Heartbeat: func(workerID, correlationID string, h worker.Heartbeat) error {
			return nats.Heartbeat(c.NC, workerID, correlationID, h)
		},
	}
	if err := w.metrics.observe(w.sessions); err != nil {
		return nil, fmt.Errorf("make the instruments: %w", err)
	}
	if w.door, err = rpc.NewServer(rpc.Options{Listen: cfg.AgentListen, Log: c.Log, Tel: c.Tel, Translate: store.Away}); err != nil {
		return nil, fmt.Errorf("open the agents' door: %w", err)
	}
	c.Health.OnChange(w.door.SetServing)
	registryv1.RegisterWorkerAgentServiceServer(w.door.GRPC(), &doors.Agents{App: a, Sessions: w.sessions, Ingest: w.ingest})
	if c.RPC == nil {
		return w, nil
	}
	address := cfg.AgentAddress
	if address == "" {
		address = w.door.Addr()
	}
	workers := &doors.Workers{App: a, List: list, Hub: w.workerHub, Meta: c.Meta, AgentAddress: address}
	registryv1.RegisterWorkerServiceServer(c.RPC.GRPC(), workers)
	registryv1.RegisterWorkerTokenServiceServer(c.RPC.GRPC(), workers)
	registryv1.RegisterLogServiceServer(c.RPC.GRPC(), &doors.Logs{App: a, Reader: &logs.Reader{
		Rows: chunks, Live: live, Jobs: doors.Jobs{App: a, Hub: w.jobHub}, Retention: cfg.retention(), Now: time.Now, Swept: w.metrics.swept,
	}})
	return w, nil
}

// exclusive has what the consumers write to be there before they run.
func (w *wiring) exclusive(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := w.c.EnsureStreams(ctx); err != nil {
			return err
		}
		return run(ctx)
	}
}

// metrics are registry's instruments.
type metrics struct {
	meter                metric.Meter
	chunks, bytes, found metric.Int64Counter
}

func newMetrics(tel *telemetry.Telemetry) (*metrics, error) {
	m := &metrics{meter: tel.Meter("hodei.dev/services/registry")}
	var err error
	if m.chunks, err = m.meter.Int64Counter("hodei.registry.log.chunks", metric.WithDescription("Chunks of output that were stored.")); err != nil {
		return nil, err
	}
	if m.bytes, err = m.meter.Int64Counter("hodei.registry.log.bytes", metric.WithUnit("By"), metric.WithDescription("Output that was stored.")); err != nil {
		return nil, err
	}
	m.found, err = m.meter.Int64Counter("hodei.registry.log.swept", metric.WithDescription("Times that a reader found chunks that should have been announced; 0 without faults."))
	return m, err
}

// replica names this process among its sisters: where it runs, for people, and that it
// is not the one before it.
func replica() string {
	host, err := os.Hostname()
	if err != nil {
		host = "registry"
	}
	return host + "/" + strings.ToLower(rand.Text()[:8])
}

// observe shows how many sessions this replica has.
func (m *metrics) observe(s *session.Manager) error {
	_, err := m.meter.Int64ObservableGauge("hodei.registry.sessions", metric.WithDescription("Agents that are connected to this replica."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(s.Count()))
			return nil
		}))
	return err
}

func (m *metrics) stored(chunks, bytes int) {
	m.chunks.Add(context.Background(), int64(chunks))
	m.bytes.Add(context.Background(), int64(bytes))
}

func (m *metrics) swept() { m.found.Add(context.Background(), 1) }

// fillStatus says how far the list of workers is and how the workers are.
func (w *wiring) fillStatus(ctx context.Context, s *platformv1.ServiceStatus) {
	position, err := w.projection.Position(ctx)
	if err != nil {
		s.Problems["workers"] = err.Error()
	}
	s.Position = position
	if handled, err := consumer.NewPositions(postgres.Schema).Load(ctx, w.c.Store.Pool(), w.c.Name); err != nil {
		s.Problems["reactions"] = err.Error()
	} else {
		// The stored one follows now and then; where this replica reacts, it knows better.
		s.Position = min(position, max(handled, w.reactions.Status().Position))
	}
	s.Lag = max(0, s.Head-s.Position)
	for name, retrying := range map[string]string{"workers": w.projection.Status().Retrying, "reactions": w.reactions.Status().Retrying} {
		if retrying != "" {
			s.Problems[name] = retrying
		}
	}
	counts, err := w.list.Counts(ctx)
	if err != nil {
		s.Problems["workers"] = err.Error()
	}
	for _, state := range worker.Transitions.States {
		if !state.Terminal() {
			s.Figures["workers_"+strings.ToLower(string(state))] = counts[string(state)]
		}
	}
	s.Figures["sessions"] = int64(w.sessions.Count())
	if size, err := w.chunks.Size(ctx); err == nil {
		s.Figures["log_bytes"] = size
	}
}
