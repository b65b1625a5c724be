package sim

import (
	"errors"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"

	"hodei.dev/services/provisioner/core"
	registrycore "hodei.dev/services/registry/core"
)

// provisioner mirrors services/provisioner/internal/app: one task for each worker that
// needs something, the warm pool, health, and the sweep.
type provisioner struct {
	*process
	w       *world
	tasks   map[string]*errand
	trouble map[string]bool // workers that cannot be ended
	pool    queue[struct{}]
	rest    time.Time
	sick    int
}

// errand is what is being done for a worker.
type errand struct {
	again    bool
	gone     string
	failures int
	wake     queue[struct{}]
}

func (w *world) provision(p *process) {
	e := &provisioner{process: p, w: w, tasks: map[string]*errand{}, trouble: map[string]bool{}}
	p.start(func(t *task) {
		for w.log.read(t) != nil {
			t.sleep(100 * time.Millisecond)
		}
		position := int64(len(w.log.events))
		for _, s := range w.log.order {
			if s.typ == catalogue.Worker && !s.terminal {
				e.poke(s.id, "")
			}
		}
		w.machine.watch = func(workerID, reason string) { e.ifAlive(func() { e.poke(workerID, reason) }) }
		for _, r := range w.machine.order {
			if !r.gone && r.agent.dead {
				e.poke(r.worker, "its process has exited")
			}
		}
		w.log.follow(p, position, e.handle, nil)
		p.start(e.fill)
		p.start(e.health)
		e.sweep(t)
	})
}

func (e *provisioner) handle(_ *task, f fact) error {
	switch own := f.says.(type) {
	case worker.ProvisioningRequested:
		e.poke(f.Stream.ID, "")
	case worker.StatusChanged:
		if own.To == worker.StateTerminating || own.To == worker.StateConnecting {
			e.poke(f.Stream.ID, "")
		}
	case worker.Disconnected:
		if own.Clean {
			e.poke(f.Stream.ID, "")
		}
	}
	if len(e.pool.items) == 0 {
		e.pool.put(struct{}{})
	}
	return nil
}

// poke has a worker looked at; gone is why its resource has ended by itself.
func (e *provisioner) poke(id, gone string) {
	t, ok := e.tasks[id]
	if !ok {
		t = &errand{}
		e.tasks[id] = t
		e.start(func(task *task) { e.work(task, id, t) })
	}
	t.again = true
	if gone != "" {
		t.gone = gone
	}
	if len(t.wake.items) == 0 {
		t.wake.put(struct{}{})
	}
}

func (e *provisioner) work(t *task, id string, own *errand) {
	for pause := 100 * time.Millisecond; ; {
		own.again, own.wake.items = false, nil
		if err := e.step(t, id, own); err != nil {
			take(t, &own.wake, t.between(pause/2, pause))
			pause = min(2*pause, 15*time.Second)
			continue
		}
		if !own.again {
			delete(e.tasks, id)
			return
		}
		pause = 100 * time.Millisecond
	}
}

// step reads the worker and brings what is to what should be.
func (e *provisioner) step(t *task, id string, own *errand) error {
	gone := own.gone
	if err := e.w.log.read(t); err != nil {
		return err
	}
	s := e.w.log.get(id)
	if s.version == 0 {
		return e.w.machine.destroy(t, id)
	}
	next, gone := core.Next(s.worker, e.w.log.get(s.worker.ProviderID).provider, s.fate, core.Keeper{Known: true, LeaseFence: e.w.elsewhere}, gone)
	switch next {
	case core.Clear:
		return e.w.machine.destroy(t, id)
	case core.End:
		return e.end(t, id, gone)
	case core.Provide:
		return e.provide(t, id, own)
	default:
		return nil
	}
}

func (e *provisioner) provide(t *task, id string, own *errand) error {
	err := e.w.machine.create(t, id, func(t *task) (string, error) { return e.token(t, id) })
	if err != nil {
		if own.failures++; core.Again(own.failures, err) {
			return err
		}
		cause := err
		return e.decide(t, id, own, func(s *stream) ([]worker.Event, event.Meta, error) {
			facts, err := core.GivenUp(s.worker, cause)
			return facts, s.created.CausedBy(catalogue.Provisioner), err
		})
	}
	return e.decide(t, id, own, func(s *stream) ([]worker.Event, event.Meta, error) {
		facts, err := core.Provided(s.worker, "sim/"+id, nil)
		return facts, s.created.CausedBy(catalogue.Provisioner), err
	})
}

// token asks registry until it answers or the worker is not wanted any more.
func (e *provisioner) token(t *task, id string) (string, error) {
	for {
		if r := e.w.door(); r != nil && !r.paused.After(r.now) && e.w.log.read(t) == nil {
			s := e.w.log.get(id)
			if s.worker.State == worker.StateTerminating || s.worker.State == worker.StateTerminated {
				return "", fault.New(fault.Precondition, "worker %s is %s", id, s.worker.State)
			}
			secret := e.w.log.newUUID()
			e.w.credentials.token[id] = registrycore.Token{Hash: registrycore.HashSecret(secret), ExpiresAt: r.clock().Add(registrycore.DefaultTokenTTL)}
			return secret, nil
		}
		t.sleep(t.between(100*time.Millisecond, time.Second))
	}
}

// end destroys the resource and confirms in the log that nothing is left.
func (e *provisioner) end(t *task, id, gone string) error {
	if !e.w.broken.confirmsFirst {
		if err := e.destroy(t, id); err != nil {
			e.trouble[id] = true
			return err
		}
	}
	delete(e.trouble, id)
	err := e.decide(t, id, e.tasks[id], func(s *stream) ([]worker.Event, event.Meta, error) {
		facts, err := core.Ended(s.worker, gone)
		meta := s.last.CausedBy(catalogue.Provisioner)
		meta.CorrelationID = s.created.CorrelationID
		if s.worker.State == worker.StateTerminating {
			meta = s.change.CausedBy(catalogue.Provisioner)
		}
		return facts, meta, err
	})
	if err == nil && e.w.broken.confirmsFirst {
		t.sleep(2 * time.Second)
		return e.w.machine.destroy(t, id)
	}
	return err
}

// fence is the session check, lease, kill grace and a margin: after that an agent that
// was given up must have ended what it ran.
const fence = deadline.SessionCheck + deadline.Lease + deadline.KillGrace + 5*time.Second

// destroy ends a resource, or waits for the proof that it has ended by itself.
func (e *provisioner) destroy(t *task, id string) error {
	if !e.w.elsewhere {
		return e.w.machine.destroy(t, id)
	}
	switch f := e.w.log.get(id).fate; {
	case !f.Registered, f.Goodbye:
		return nil
	case f.Condemned.IsZero():
		return fault.New(fault.Precondition, "worker %s is not given up: its agent goes on", id)
	default:
		if left := f.Condemned.Add(fence).Sub(t.now); left > 0 {
			take(t, &e.tasks[id].wake, left)
			if e.w.log.get(id).fate == f && t.now.Before(f.Condemned.Add(fence)) {
				return errIll // woken by something else: it waits on
			}
			return e.destroy(t, id)
		}
		return nil
	}
}

// decide changes the worker; one that has to be ended then is looked at again.
func (e *provisioner) decide(t *task, id string, own *errand, decide func(s *stream) ([]worker.Event, event.Meta, error)) error {
	if err := e.w.log.decide(t, id, decide); err != nil {
		return err
	}
	if own != nil && e.w.log.get(id).worker.State == worker.StateTerminating {
		own.again = true
	}
	return nil
}

// fill keeps min_idle workers of the provider ready.
func (e *provisioner) fill(t *task) {
	for {
		take(t, &e.pool, 5*time.Second)
		if wait := e.rest.Sub(e.clock()); wait > 0 || e.w.log.read(t) != nil {
			t.sleep(max(wait, 100*time.Millisecond))
		}
		for _, p := range e.w.log.order {
			if p.typ != catalogue.Provider {
				continue
			}
			var live []worker.Worker
			for _, s := range e.w.log.order {
				if s.typ == catalogue.Worker && !s.terminal && s.worker.ProviderID == p.id {
					live = append(live, s.worker)
				}
			}
			for range core.Missing(p.provider, live) {
				e.ask(t, p.provider)
			}
		}
	}
}

func (e *provisioner) ask(t *task, p provider.Provider) {
	id := e.w.log.newUUID()
	meta := event.Meta{Source: catalogue.Provisioner, Actor: "service/provisioner", CorrelationID: id}
	var a store.Append
	workerChange(&a, worker.Worker{ID: id}, meta, worker.Request(worker.ProvisioningRequested{
		ProviderID: p.ID, ProviderName: p.Spec.Name, JobsPerWorker: p.Spec.JobsPerWorker, Reason: "kept ready",
	}))
	if _, err := e.w.log.append(t, e.w.log.sign(a)); err == nil {
		e.poke(id, "")
		return
	}
	e.sick++
	e.rest = e.clock().Add(core.Pause(e.sick))
}

// health says what is news of the provider.
func (e *provisioner) health(t *task) {
	for {
		t.sleep(5 * time.Second)
		if e.w.log.read(t) != nil {
			continue
		}
		health, reason := provider.Healthy, "it can make and end workers"
		if e.w.chaos.ill() || len(e.trouble) > 0 {
			health, reason = provider.Unhealthy, errIll.Error()
		}
		for _, p := range e.w.log.order {
			if p.typ != catalogue.Provider {
				continue
			}
			if facts := p.provider.Observe(health, reason); len(facts) > 0 {
				meta := event.Meta{Source: catalogue.Provisioner, Actor: "service/provisioner", CorrelationID: e.w.log.newUUID()}
				_, _ = e.w.log.append(t, e.w.log.sign(providerChange(p.provider, meta, facts)))
			}
		}
	}
}

// sweep compares log and provider, and repairs what it sees for the second time.
func (e *provisioner) sweep(t *task) {
	var before core.Sightings
	for {
		seen := core.Sightings{}
		if err := e.look(t, before, seen); err == nil {
			before = seen
		}
		t.sleep(core.SightingApart)
	}
}

func (e *provisioner) look(t *task, before, seen core.Sightings) error {
	if err := e.w.log.read(t); err != nil {
		return err
	}
	var live []worker.Worker
	for _, s := range e.w.log.order {
		if s.typ == catalogue.Worker && !s.terminal {
			live = append(live, s.worker)
		}
	}
	names, err := e.w.machine.list(t)
	if err != nil {
		return err
	}
	exists := map[string]bool{}
	if e.w.elsewhere {
		return nil
	}
	for _, id := range names {
		exists[id] = true
		if e.tasks[id] == nil && core.Zombie(e.w.log.get(id).worker) && before.Confirmed(seen, "zombie "+id, e.clock()) {
			e.w.found.zombies++
			e.poke(id, "")
		}
	}
	for _, w := range live {
		if !exists[w.ID] && core.Ghost(w) && e.tasks[w.ID] == nil && before.Confirmed(seen, "ghost "+w.ID, e.clock()) {
			e.w.found.ghosts++
			e.poke(w.ID, "its resource does not exist any more")
		}
	}
	return nil
}

func isConflict(err error) bool { return errors.Is(err, fault.Conflict) }

func isAway(err error) bool { return errors.Is(err, fault.Unavailable) }
