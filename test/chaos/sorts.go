package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/bus"
)

// sort is one sort of fault.
type sort struct {
	name   string
	weight int
	// lasts is how long such a fault is there, from one to the other.
	lasts [2]time.Duration
	// targets lists what it may hit.
	targets func(*platform) []string
	// cluster: it needs more than one NATS server.
	cluster bool
	// hits says that it is an agent's: what counts is its attempt.
	hits bool
	// scope is what such faults have to themselves on their target, one after the other.
	scope string
	// do makes the fault, and ends it after f.lasts.
	do func(context.Context, *platform, *injected) error
}

func seconds(from, to float64) [2]time.Duration {
	return [2]time.Duration{time.Duration(from * float64(time.Second)), time.Duration(to * float64(time.Second))}
}

// sorts are all faults that are injected.
var sorts = []sort{
	{name: "kill -9 service", weight: 14, lasts: seconds(0, 4), targets: (*platform).instances, scope: "service", do: killService},
	{name: "restart service", weight: 5, targets: (*platform).instances, scope: "service", do: restartService},
	{name: "pause service", weight: 10, lasts: seconds(1, 60), targets: (*platform).instances, scope: "service", do: pauseService},
	{name: "kill -9 all services", weight: 2, lasts: seconds(0, 3), do: killAllServices},

	{name: "kill -9 NATS", weight: 5, lasts: seconds(0, 6), targets: nodeNames, scope: "node", do: killNATS},
	{name: "wipe NATS", weight: 5, lasts: seconds(0, 3), targets: nodeNames, scope: "node", do: wipeNATS},
	{name: "pause NATS", weight: 3, lasts: seconds(1, 30), targets: nodeNames, scope: "node", do: pauseNATS},
	{name: "fill NATS' disk", weight: 3, lasts: seconds(2, 15), targets: nodeNames, scope: "node", do: fillDisk},
	{name: "partition NATS node", weight: 6, lasts: seconds(2, 30), targets: nodeNames, cluster: true, scope: "node", do: partitionNode},

	{name: "delete consumer", weight: 3, targets: consumers, do: deleteConsumer},
	{name: "pause consumer", weight: 3, lasts: seconds(5, 30), targets: consumers, do: pauseConsumer},
	{name: "delete stream", weight: 3, do: deleteStream},
	{name: "purge stream", weight: 3, do: purgeStream},
	{name: "delete messages", weight: 3, do: deleteMessages},

	{name: "kill -9 Postgres", weight: 4, lasts: seconds(0, 5), scope: "postgres", do: killPostgres},
	{name: "cut service from Postgres", weight: 5, lasts: seconds(1, 20), targets: (*platform).instances, scope: "postgres link", do: onPostgresLink(cut)},
	{name: "half-open service to Postgres", weight: 4, lasts: seconds(2, 30), targets: (*platform).instances, scope: "postgres link", do: onPostgresLink(halfOpen)},
	{name: "slow service to Postgres", weight: 2, lasts: seconds(5, 20), targets: (*platform).instances, scope: "postgres link", do: onPostgresLink(slow)},
	{name: "cut service from NATS", weight: 5, lasts: seconds(1, 20), targets: (*platform).instances, scope: "NATS links", do: onBusLinks(cut)},
	{name: "half-open service to NATS", weight: 4, lasts: seconds(2, 40), targets: (*platform).instances, scope: "NATS links", do: onBusLinks(halfOpen)},
	{name: "silent service to NATS", weight: 4, lasts: seconds(2, 40), targets: (*platform).instances, scope: "NATS links", do: onBusLinks(silent)},
	{name: "slow service to NATS", weight: 2, lasts: seconds(5, 20), targets: (*platform).instances, scope: "NATS links", do: onBusLinks(slow)},

	{name: "kill -9 agent", weight: 10, hits: true, do: killAgent},
	{name: "pause agent", weight: 8, lasts: seconds(1, 60), hits: true, do: pauseAgent},
	{name: "cut agent off", weight: 6, lasts: seconds(1, 50), hits: true, scope: "agents' link", do: onAgent(cut)},
	{name: "half-open agent", weight: 6, lasts: seconds(2, 50), hits: true, scope: "agents' link", do: onAgent(halfOpen)},
	{name: "silent agent", weight: 4, lasts: seconds(2, 50), hits: true, scope: "agents' link", do: onAgent(silent)},
	{name: "cut all agents off", weight: 3, lasts: seconds(1, 30), scope: "agents' link", do: onAllAgents(cut)},
	{name: "half-open all agents", weight: 2, lasts: seconds(2, 30), scope: "agents' link", do: onAllAgents(halfOpen)},
}

func nodeNames(p *platform) []string {
	var out []string
	for i := range p.options.nodes {
		out = append(out, fmt.Sprintf("n%d", i+1))
	}
	return out
}

func consumers(*platform) []string {
	return []string{"scheduler", "dispatcher", "registry", "provisioner", "timeout-monitor", "audit"}
}

func killService(ctx context.Context, p *platform, f *injected) error {
	s := p.services[f.target]
	s.kill()
	f.wait(ctx)
	return s.start()
}

func restartService(_ context.Context, p *platform, f *injected) error {
	s := p.services[f.target]
	err := s.stop(40 * time.Second)
	return errors.Join(err, s.start())
}

func pauseService(ctx context.Context, p *platform, f *injected) error {
	s := p.services[f.target]
	s.signal(syscall.SIGSTOP)
	f.wait(ctx)
	s.signal(syscall.SIGCONT)
	return nil
}

func killAllServices(ctx context.Context, p *platform, f *injected) error {
	for _, s := range p.services {
		s.kill()
	}
	f.wait(ctx)
	var errs error
	for _, s := range p.services {
		errs = errors.Join(errs, s.start())
	}
	return errs
}

func (p *platform) node(name string) *node {
	for _, n := range p.nodes {
		if n.name == "nats-"+name {
			return n
		}
	}
	return nil
}

func killNATS(ctx context.Context, p *platform, f *injected) error {
	n := p.node(f.target)
	n.kill()
	f.wait(ctx)
	return n.start()
}

func wipeNATS(ctx context.Context, p *platform, f *injected) error {
	n := p.node(f.target)
	n.kill()
	if err := n.wipe(); err != nil {
		return err
	}
	f.wait(ctx)
	return n.start()
}

func pauseNATS(ctx context.Context, p *platform, f *injected) error {
	n := p.node(f.target)
	n.signal(syscall.SIGSTOP)
	f.wait(ctx)
	n.signal(syscall.SIGCONT)
	return nil
}

func fillDisk(ctx context.Context, p *platform, f *injected) error {
	n := p.node(f.target)
	if !n.disk.mounted {
		f.skip("no file system may be mounted here")
		return nil
	}
	if err := n.disk.fill(); err != nil {
		return err
	}
	f.wait(ctx)
	if err := n.disk.free(); err != nil {
		return err
	}
	// A server that has seen its disk full switches JetStream off until it is restarted.
	n.kill()
	return n.start()
}

func partitionNode(ctx context.Context, p *platform, f *injected) error {
	n := p.node(f.target)
	set := func(m mode) {
		for _, k := range n.routes {
			k.Set(m, 0)
		}
		for _, other := range p.nodes {
			if k := other.routes[n.name]; k != nil {
				k.Set(m, 0)
			}
		}
	}
	set([]mode{cut, halfOpen}[f.dice%2])
	f.wait(ctx)
	set(open)
	return nil
}

// onStream does something to the events stream, for as long as NATS does not answer.
func onStream(ctx context.Context, p *platform, f *injected, do func(context.Context, jetstream.JetStream) error) error {
	nc, err := p.conn()
	if err != nil {
		f.skip("NATS is away: " + err.Error())
		return nil
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := do(ask, js); err != nil {
		f.skip(err.Error())
	}
	return nil
}

func deleteConsumer(ctx context.Context, p *platform, f *injected) error {
	return onStream(ctx, p, f, func(ctx context.Context, js jetstream.JetStream) error {
		return js.DeleteConsumer(ctx, bus.EventsStream, f.target)
	})
}

func pauseConsumer(ctx context.Context, p *platform, f *injected) error {
	return onStream(ctx, p, f, func(ctx context.Context, js jetstream.JetStream) error {
		_, err := js.PauseConsumer(ctx, bus.EventsStream, f.target, time.Now().Add(f.lasts))
		return err
	})
}

func deleteStream(ctx context.Context, p *platform, f *injected) error {
	return onStream(ctx, p, f, func(ctx context.Context, js jetstream.JetStream) error {
		return js.DeleteStream(ctx, bus.EventsStream)
	})
}

func purgeStream(ctx context.Context, p *platform, f *injected) error {
	return onStream(ctx, p, f, func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, bus.EventsStream)
		if err != nil {
			return err
		}
		return s.Purge(ctx)
	})
}

// deleteMessages takes some of the last messages out of the middle of the stream.
func deleteMessages(ctx context.Context, p *platform, f *injected) error {
	return onStream(ctx, p, f, func(ctx context.Context, js jetstream.JetStream) error {
		s, err := js.Stream(ctx, bus.EventsStream)
		if err != nil {
			return err
		}
		last := s.CachedInfo().State.LastSeq
		for n := range min(last, 40) {
			if (f.dice>>n)&1 == 0 {
				continue
			}
			if err := s.DeleteMsg(ctx, last-n); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
				return nil //nolint:nilerr // what was asked for before may have been done, and this too
			}
		}
		return nil
	})
}

func killPostgres(ctx context.Context, p *platform, f *injected) error {
	if err := syscall.Kill(p.pg.PID(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	f.wait(ctx)
	return p.restartPostgres(context.WithoutCancel(ctx))
}

// delayOf is how slow a slow link is.
func delayOf(f *injected) time.Duration { return time.Duration(20+f.dice%300) * time.Millisecond }

func onPostgresLink(m mode) func(context.Context, *platform, *injected) error {
	return func(ctx context.Context, p *platform, f *injected) error {
		k := p.pgLinks[f.target]
		k.Set(m, delayOf(f))
		f.wait(ctx)
		k.Set(open, 0)
		return nil
	}
}

func onBusLinks(m mode) func(context.Context, *platform, *injected) error {
	return func(ctx context.Context, p *platform, f *injected) error {
		for _, k := range p.busLinks[f.target] {
			k.Set(m, delayOf(f))
		}
		f.wait(ctx)
		for _, k := range p.busLinks[f.target] {
			k.Set(open, 0)
		}
		return nil
	}
}

// victim is an agent, rather one that has a job.
func victim(p *platform, f *injected) (agent, bool) {
	all := p.liveAgents()
	var busy []agent
	for _, a := range all {
		if children(a.pid) {
			busy = append(busy, a)
		}
	}
	if len(busy) > 0 {
		all = busy
	}
	if len(all) == 0 {
		f.skip("there is no agent")
		return agent{}, false
	}
	a := all[f.dice%uint64(len(all))]
	f.worker(a.worker)
	return a, true
}

func killAgent(_ context.Context, p *platform, f *injected) error {
	if a, ok := victim(p, f); ok {
		_ = syscall.Kill(a.pid, syscall.SIGKILL) // it may have just ended
	}
	return nil
}

func pauseAgent(ctx context.Context, p *platform, f *injected) error {
	a, ok := victim(p, f)
	if !ok {
		return nil
	}
	_ = syscall.Kill(a.pid, syscall.SIGSTOP) // it may have just ended
	f.wait(ctx)
	_ = syscall.Kill(a.pid, syscall.SIGCONT)
	return nil
}

func onAgent(m mode) func(context.Context, *platform, *injected) error {
	return func(ctx context.Context, p *platform, f *injected) error {
		a, ok := victim(p, f)
		if !ok {
			return nil
		}
		p.agents.SetOnly(m, 0, a.pid)
		f.wait(ctx)
		p.agents.Set(open, 0)
		return nil
	}
}

func onAllAgents(m mode) func(context.Context, *platform, *injected) error {
	return func(ctx context.Context, p *platform, f *injected) error {
		p.agents.Set(m, 0)
		f.wait(ctx)
		p.agents.Set(open, 0)
		return nil
	}
}
