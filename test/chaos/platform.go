package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"hodei.dev/libs/eventing/pgserver"
)

// The providers of a plan: jobs of the load and probes do not wait for each other.
const (
	providerLoad  = "load"
	providerProbe = "probe"
)

// services are the binaries; any order of starts works.
var services = []string{"relay", "scheduler", "dispatcher", "registry", "provisioner", "timeout-monitor", "audit", "gateway"}

// standbys have a second replica in every other plan.
var standbys = []string{"relay", "scheduler", "dispatcher", "registry", "timeout-monitor", "audit"}

// options say what platform a plan runs on.
type options struct {
	bin, dir string
	// nodes of the NATS cluster: 1 or 3.
	nodes int
	// replicated: there are standbys.
	replicated bool
	workers    int
	// jobsPerWorker; 0 = unlimited. minIdle workers are kept.
	jobsPerWorker, minIdle int
}

// platform is a whole installation, each part a process, each connection a link.
type platform struct {
	options
	journal journal
	gateway string

	pgMu     sync.Mutex // held while Postgres is being restarted
	pg       *pgserver.Server
	nodes    []*node
	services map[string]*process
	pgLinks  map[string]*link
	busLinks map[string][]*link // one for each node
	agents   *link
	links    []*link
}

// newPlatform makes and starts everything, and waits until it works.
func newPlatform(ctx context.Context, o options) (_ *platform, err error) {
	p := &platform{options: o, services: map[string]*process{}, pgLinks: map[string]*link{}, busLinks: map[string][]*link{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	// Jobs run as other users and reach their work directories below it, whatever the umask.
	if err := errors.Join(os.MkdirAll(o.dir, 0o711), os.Chmod(o.dir, 0o711)); err != nil {
		return nil, err
	}
	if p.journal, err = newJournal(filepath.Join(o.dir, "journal")); err != nil {
		return nil, err
	}
	if err := p.copyTask(); err != nil {
		return nil, err
	}
	if err := p.startPostgres(ctx); err != nil {
		return nil, err
	}
	if err := p.makeNodes(); err != nil {
		return nil, err
	}
	if err := p.makeServices(); err != nil {
		return nil, err
	}
	if out, err := p.hodei(ctx, "migrate"); err != nil {
		return nil, fmt.Errorf("migrate: %w: %s", err, out)
	}
	for _, s := range p.services {
		if err := s.start(); err != nil {
			return nil, err
		}
	}
	return p, p.waitReady(ctx, 90*time.Second)
}

// copyTask puts this program where jobs of all users can run it.
func (p *platform) copyTask() error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	f, err := os.OpenFile(p.taskPath(), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, self)
	return errors.Join(err, f.Close(), os.Chmod(p.taskPath(), 0o755))
}

func (p *platform) taskPath() string { return filepath.Join(p.dir, "task") }

// task is the command of the load's jobs, without kind and duration.
func (p *platform) task() []string { return []string{p.taskPath(), "task", p.journal.dir} }

func (p *platform) startPostgres(ctx context.Context) error {
	pg, err := pgserver.Start(ctx, pgserver.Config{
		DataDir: filepath.Join(p.dir, "postgres"), Unsafe: true, BindToParent: true,
		Settings: map[string]string{"max_connections": "400", "shared_buffers": "128MB"},
	})
	if err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	p.pg = pg
	db, err := pgx.Connect(ctx, pg.URL("postgres"))
	if err != nil {
		return err
	}
	if _, err := db.Exec(ctx, "create database hodei"); err != nil {
		return errors.Join(err, db.Close(ctx))
	}
	return db.Close(ctx)
}

// database is the direct way to the log, for the suite alone.
func (p *platform) database() string { return p.pg.URL("hodei") }

// socket is where Postgres listens.
func (p *platform) socket() (string, error) {
	c, err := pgx.ParseConfig(p.database())
	if err != nil {
		return "", err
	}
	return filepath.Join(c.Host, fmt.Sprintf(".s.PGSQL.%d", c.Port)), nil
}

// restartPostgres starts it again after it was killed.
func (p *platform) restartPostgres(ctx context.Context) error {
	p.pgMu.Lock()
	defer p.pgMu.Unlock()
	return p.pg.Restart(ctx)
}

func (p *platform) makeNodes() error {
	if err := os.MkdirAll(filepath.Join(p.dir, "log"), 0o700); err != nil {
		return err
	}
	clusterPorts := make([]int, p.options.nodes)
	for i := range p.options.nodes {
		name := fmt.Sprintf("n%d", i+1)
		d, err := newDisk(filepath.Join(p.dir, "nats-"+name))
		if err != nil {
			return fmt.Errorf("make the disk of NATS: %w", err)
		}
		n := &node{disk: d, store: filepath.Join(d.path, "jetstream"), routes: map[string]*link{}}
		if err := os.MkdirAll(n.store, 0o700); err != nil {
			return err
		}
		if n.port, err = freePort(); err != nil {
			return err
		}
		if clusterPorts[i], err = freePort(); err != nil {
			return err
		}
		n.process = &process{
			name: "nats-" + name, path: p.taskPath(), log: p.logFile("nats-" + name),
			args: []string{"nats", "--name", name, "--port", fmt.Sprint(n.port), "--store", n.store},
		}
		p.nodes = append(p.nodes, n)
	}
	if err := p.makeRoutes(clusterPorts); err != nil {
		return err
	}
	for _, n := range p.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

// makeRoutes joins the nodes to a cluster in which each reaches each other over a link.
func (p *platform) makeRoutes(ports []int) error {
	if len(p.nodes) == 1 {
		return nil
	}
	for i, n := range p.nodes {
		var urls []string
		for j, other := range p.nodes {
			if i == j {
				continue
			}
			k, err := p.link(n.name+"-"+other.name, fmt.Sprintf("127.0.0.1:%d", ports[j]))
			if err != nil {
				return err
			}
			other.routes[n.name] = k
			urls = append(urls, "nats://"+k.Addr())
		}
		n.args = append(n.args, "--cluster-port", fmt.Sprint(ports[i]), "--routes", strings.Join(urls, ","))
	}
	return nil
}

func (p *platform) link(name, address string) (*link, error) {
	k, err := newLink(name, dialer(address), nil)
	if err == nil {
		p.links = append(p.links, k)
	}
	return k, err
}

func (p *platform) logFile(name string) string { return filepath.Join(p.dir, "log", name+".log") }

// instances are the names of all processes of services.
func (p *platform) instances() []string {
	out := slices.Clone(services)
	if p.replicated {
		for _, s := range standbys {
			out = append(out, s+"-2")
		}
	}
	return out
}

// makeServices gives each instance links and an environment of its own.
func (p *platform) makeServices() error {
	socket, err := p.socket()
	if err != nil {
		return err
	}
	if p.gateway, err = freeAddress(); err != nil {
		return err
	}
	var doors []string
	for _, name := range p.instances() {
		if strings.HasPrefix(name, "registry") {
			door, err := freeAddress()
			if err != nil {
				return err
			}
			doors = append(doors, door)
		}
	}
	if p.agents, err = p.agentsLink(doors); err != nil {
		return err
	}
	if err := p.writeProviders(); err != nil {
		return err
	}
	for _, name := range p.instances() {
		if p.pgLinks[name], err = p.link(name+"-postgres", socket); err != nil {
			return err
		}
		var urls []string
		for _, n := range p.nodes {
			k, err := p.link(name+"-"+n.name, fmt.Sprintf("127.0.0.1:%d", n.port))
			if err != nil {
				return err
			}
			p.busLinks[name] = append(p.busLinks[name], k)
			urls = append(urls, "nats://"+k.Addr())
		}
		service := strings.TrimSuffix(name, "-2")
		s := &process{name: name, path: filepath.Join(p.bin, "hodei-"+service), log: p.logFile(name)}
		listen := p.door(name)
		switch name {
		case "gateway":
			listen = p.gateway
		case "provisioner":
			s.args = []string{"--config", filepath.Join(p.dir, "provisioner.yaml")}
		case "registry-2":
			s.env = append(s.env, "HODEI_AGENT_LISTEN="+doors[1])
		case "registry":
			s.env = append(s.env, "HODEI_AGENT_LISTEN="+doors[0])
		}
		s.env = append(append(s.env, p.env()...),
			"HODEI_POSTGRES_URL=postgres://hodei@"+p.pgLinks[name].Addr()+"/hodei?sslmode=disable",
			"HODEI_NATS_URL="+strings.Join(urls, ","), "HODEI_LISTEN="+listen)
		p.services[name] = s
	}
	return nil
}

// agentsLink leads agents to any registry that answers.
func (p *platform) agentsLink(doors []string) (*link, error) {
	var turn int
	var mu sync.Mutex // guards turn
	k, err := newLink("agents-registry", func() (net.Conn, error) {
		mu.Lock()
		turn++
		first := turn
		mu.Unlock()
		var errs error
		for i := range doors {
			c, err := net.DialTimeout("tcp", doors[(first+i)%len(doors)], 5*time.Second)
			if err == nil {
				return c, nil
			}
			errs = errors.Join(errs, err)
		}
		return nil, errs
	}, p.agentPIDs)
	if err == nil {
		p.links = append(p.links, k)
	}
	return k, err
}

func (p *platform) door(name string) string {
	return "unix://" + filepath.Join(p.dir, name+".sock")
}

// env is what every service has in its environment.
func (p *platform) env() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "HODEI_LOG_LEVEL=info", "HODEI_AGENT_ADDRESS=" + p.agents.Addr(), "HODEI_SERVER=" + p.gateway,
		fmt.Sprintf("HODEI_NATS_REPLICAS=%d", len(p.nodes)),
	}
	for _, s := range services {
		env = append(env, "HODEI_"+strings.ToUpper(strings.ReplaceAll(s, "-", "_"))+"_ADDRESS="+p.door(s))
	}
	return env
}

func (p *platform) writeProviders() error {
	file := fmt.Sprintf(`state_dir: %s
providers:
  - {name: %s, kind: process, max_workers: %d, jobs_per_worker: %d, min_idle: %d}
  - {name: %s, kind: process, max_workers: 3, jobs_per_worker: 1}
`, p.stateDir(), providerLoad, p.workers, p.jobsPerWorker, p.minIdle, providerProbe)
	return os.WriteFile(filepath.Join(p.dir, "provisioner.yaml"), []byte(file), 0o600)
}

func (p *platform) stateDir() string { return filepath.Join(p.dir, "state") }

// hodei runs the command line.
func (p *platform) hodei(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "hodei"), args...)
	cmd.Env = append(p.env(), "HODEI_POSTGRES_URL="+p.database())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// waitReady waits until every service is ready and has handled the log.
func (p *platform) waitReady(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		why := p.unready(ctx)
		if why == "" {
			return nil
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %s", within, why)
		}
	}
}

// unready says what is not ready; empty when everything is.
func (p *platform) unready(ctx context.Context) string {
	out, err := p.hodei(ctx, "status", "-o", "json")
	if err != nil {
		return strings.TrimSpace(out)
	}
	var status struct {
		Services []struct {
			Name        string            `json:"name"`
			Ready       bool              `json:"ready"`
			Unreachable bool              `json:"unreachable"`
			Lag         int64             `json:"lag"`
			Problems    map[string]string `json:"problems"`
		} `json:"services"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return err.Error()
	}
	for _, s := range status.Services {
		if !s.Ready || s.Unreachable || s.Lag > 0 {
			return fmt.Sprintf("%+v", s)
		}
	}
	if len(status.Services) < len(services)-1 {
		return fmt.Sprintf("only %d services answer", len(status.Services))
	}
	return ""
}

// conn is a connection to NATS for the suite alone.
func (p *platform) conn() (*nats.Conn, error) {
	var urls []string
	for _, n := range p.nodes {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", n.port))
	}
	return nats.Connect(strings.Join(urls, ","), nats.Timeout(5*time.Second))
}

// agent is a worker's agent that runs.
type agent struct {
	worker string
	pid    int
}

// liveAgents are those that the provisioner's own records name and that run.
func (p *platform) liveAgents() []agent {
	files, _ := filepath.Glob(filepath.Join(p.stateDir(), "workers", "*", "worker.json")) // the pattern is right
	var out []agent
	for _, file := range files {
		content, err := os.ReadFile(file)
		var record struct {
			WorkerID string `json:"worker_id"`
			Agent    struct {
				PID int `json:"pid"`
			} `json:"agent"`
		}
		if err != nil || json.Unmarshal(content, &record) != nil || record.Agent.PID == 0 {
			continue
		}
		if syscall.Kill(record.Agent.PID, 0) == nil {
			out = append(out, agent{worker: record.WorkerID, pid: record.Agent.PID})
		}
	}
	return out
}

func (p *platform) agentPIDs() []int {
	var out []int
	for _, a := range p.liveAgents() {
		out = append(out, a.pid)
	}
	return out
}

// heal ends every fault that is still there.
func (p *platform) heal(ctx context.Context) error {
	for _, k := range p.links {
		k.Set(open, 0)
	}
	var errs error
	for _, n := range p.nodes {
		n.signal(syscall.SIGCONT)
		errs = errors.Join(errs, n.disk.free(), n.start())
	}
	select {
	case <-p.pg.Exited():
		errs = errors.Join(errs, p.restartPostgres(ctx))
	default:
	}
	for _, s := range p.services {
		s.signal(syscall.SIGCONT)
		errs = errors.Join(errs, s.start())
	}
	for _, a := range p.liveAgents() {
		_ = syscall.Kill(a.pid, syscall.SIGCONT) // it may have just ended
	}
	return errs
}

// stopServices ends them all with SIGTERM.
func (p *platform) stopServices() error {
	var errs error
	names := p.instances()
	slices.Reverse(names)
	for _, name := range names {
		errs = errors.Join(errs, p.services[name].stop(40*time.Second))
	}
	return errs
}

// close ends whatever is left; the directory stays.
func (p *platform) close() error {
	for _, s := range p.services {
		s.kill()
	}
	for range 100 {
		pids, _ := processesIn(p.stateDir())
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have just ended
		}
		time.Sleep(50 * time.Millisecond)
	}
	var errs error
	for _, n := range p.nodes {
		n.kill()
		errs = errors.Join(errs, n.disk.unmount())
	}
	for _, k := range p.links {
		k.Close()
	}
	if p.pg != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		errs = errors.Join(errs, p.pg.Stop(ctx))
	}
	return errs
}

func freeAddress() (string, error) {
	port, err := freePort()
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

// freePort is below the ports that the system gives to outgoing connections, so that a
// server which was killed finds it free again.
func freePort() (int, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000))); err == nil {
			return l.Addr().(*net.TCPAddr).Port, l.Close()
		}
	}
	return 0, err
}
