package process

import (
	"context"
	"fmt"
	"os/exec"

	"hodei.dev/libs/platform/proctree"
	"hodei.dev/services/provisioner/internal/app"
)

// adopt takes over the workers that are in the state directory, once for each
// Watch.
func (p *Provider) adopt() error {
	p.adopting.Lock()
	defer p.adopting.Unlock()
	if p.adopted {
		return nil
	}
	ids, err := p.ids()
	if err != nil {
		return err
	}
	for _, id := range ids {
		r, tree, err := p.find(id)
		if err != nil {
			return fmt.Errorf("take over worker %s: %w", id, err)
		}
		p.mu.Lock()
		if r.User != 0 {
			p.users[id] = r.User
		}
		_, ours := p.watched[id]
		p.mu.Unlock()
		if r.Agent.PID == 0 || ours {
			continue // begun only: Create or a sweep makes an end of it
		}
		p.watchAdopted(id, tree)
		p.cfg.Log.Info("took over a worker", "worker", id, "pid", r.Agent.PID)
	}
	p.adopted = true
	return nil
}

// watchChild waits for an agent that this process started, and takes its exit
// status, also after Close: nobody else can.
func (p *Provider) watchChild(id string, cmd *exec.Cmd) {
	ctx := p.watching(id)
	go func() {
		err := cmd.Wait()
		reason := "its agent has ended"
		if err != nil {
			reason += " (" + err.Error() + ")"
		}
		if ctx.Err() == nil {
			p.ended(id, reason)
		}
	}()
}

// watchAdopted waits for an agent that another process started.
func (p *Provider) watchAdopted(id string, tree *proctree.Tree) {
	ctx := p.watching(id)
	go func() {
		if err := tree.WaitMain(ctx); err != nil {
			if ctx.Err() == nil {
				p.cfg.Log.Warn("cannot wait for an agent", "worker", id, "error", err)
			}
			return
		}
		p.ended(id, "its agent has ended")
	}()
}

// watching begins to watch a worker; the context ends with forget or Close.
func (p *Provider) watching(id string) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.watched[id]; ok {
		old.cancel()
	}
	p.watched[id] = &watched{cancel: cancel}
	return ctx
}

// ended remembers that an agent has ended by itself and tells who watches.
func (p *Provider) ended(id, reason string) {
	if words := p.lastWords(id); words != "" {
		reason += ": " + words
	}
	p.mu.Lock()
	w, ok := p.watched[id]
	gone := p.gone
	if ok {
		w.ended = reason
	}
	p.mu.Unlock()
	if ok && gone != nil {
		gone(app.Gone{WorkerID: id, Reason: reason})
	}
}

// unwatch ends the watch of a worker that is being ended.
func (p *Provider) unwatch(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w, ok := p.watched[id]; ok {
		w.cancel()
		delete(p.watched, id)
	}
}

// forget gives the user of a worker back, once nothing runs as it.
func (p *Provider) forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.users, id)
}

// Watch tells of agents that have ended, at once and as it happens.
func (p *Provider) Watch(ctx context.Context, gone func(app.Gone)) error {
	if err := p.adopt(); err != nil {
		return err
	}
	p.mu.Lock()
	p.gone = gone
	var before []app.Gone
	for id, w := range p.watched {
		if w.ended != "" {
			before = append(before, app.Gone{WorkerID: id, Reason: w.ended})
		}
	}
	p.mu.Unlock()
	for _, g := range before {
		gone(g)
	}
	select {
	case <-ctx.Done():
	case <-p.closed:
	}
	p.mu.Lock()
	p.gone = nil
	p.mu.Unlock()
	p.adopting.Lock()
	p.adopted = false
	p.adopting.Unlock()
	if ctx.Err() == nil {
		return fmt.Errorf("the process provider is closed")
	}
	return nil
}
