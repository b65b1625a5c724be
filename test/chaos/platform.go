package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

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

func (p *platform) link(name, address string) (*link, error) {
	k, err := newLink(name, dialer(address), nil)
	if err == nil {
		p.links = append(p.links, k)
	}
	return k, err
}

func (p *platform) logFile(name string) string { return filepath.Join(p.dir, "log", name+".log") }

func (p *platform) stateDir() string { return filepath.Join(p.dir, "state") }

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
