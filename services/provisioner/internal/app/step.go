package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/services/provisioner/core"
)

// tokenTTL is how long an agent that is started at once may take to register.
const tokenTTL = 5 * time.Minute

// step reads the worker and brings what is to what should be. Its error means:
// try again.
func (e *Engine) step(ctx context.Context, id string, t *task, gone string) error {
	k, err := loadWorker(ctx, e.Log, id)
	if errors.Is(err, fault.NotFound) {
		return e.clear(ctx, id)
	}
	if err != nil {
		return err
	}
	p, err := e.providerOf(ctx, k.ProviderID)
	if err != nil && !errors.Is(err, fault.NotFound) {
		return err
	}
	keeper := e.keeper(p, k.Details)
	next, gone := core.Next(k.Worker, p, k.fate, trait(keeper), gone)
	switch next {
	case core.Clear:
		return e.clear(ctx, id)
	case core.End:
		return e.end(ctx, k, keeper, gone)
	case core.Drain:
		return e.drain(ctx, k)
	case core.GiveUp:
		return e.giveUp(ctx, k, fault.New(fault.Precondition, "provider %q of kind %q cannot make workers here", k.ProviderName, p.Spec.Kind))
	case core.Provide:
		return e.provide(ctx, k, p, keeper, t)
	case core.Rest:
	}
	return nil
}

// trait is what decisions need to know of a keeper.
func trait(keeper Provider) core.Keeper {
	if keeper == nil {
		return core.Keeper{}
	}
	return core.Keeper{Known: true, LeaseFence: keeper.Capabilities().LeaseFence}
}

// providerOf is a registration from memory, else from the log.
func (e *Engine) providerOf(ctx context.Context, id string) (provider.Provider, error) {
	m := e.current()
	if m != nil {
		if p, ok := m.providerByID(id); ok {
			return p, nil
		}
	}
	p, err := aggregate.LoadProvider(ctx, e.Log, id)
	if err == nil && m != nil {
		m.provider(p)
	}
	return p, err
}

// keeper is who can end the worker's resource: its provider, or the fence where the
// resource is on another machine; nil where its kind is unknown.
func (e *Engine) keeper(p provider.Provider, details map[string]string) Provider {
	kind, ok := e.Kinds[p.Spec.Kind]
	if !ok {
		return nil
	}
	if local, ok := kind.(Local); ok && !local.Here(details) {
		return e.Fence
	}
	return kind
}

// provide has the resource made and says so in the log.
func (e *Engine) provide(ctx context.Context, k known, p provider.Provider, keeper Provider, t *task) error {
	r, err := keeper.Create(ctx, WorkerSpec{
		WorkerID: k.ID, Provider: p.Spec.Name, CPUMillis: k.CPUMillis, MemoryBytes: k.MemoryBytes,
		RunAs: p.Spec.RunAs, Extension: p.Spec.Config,
		Token: func(ctx context.Context) (Token, error) { return e.token(ctx, k) },
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		t.failures++
		if core.Again(t.failures, err) {
			return fmt.Errorf("make the resource of worker %s: %w", k.ID, err)
		}
		return e.giveUp(ctx, k, err)
	case r.Pending:
		return nil // a later event says that it is there
	}
	return e.decide(ctx, k.ID, func(k known) ([]worker.Event, event.Meta, error) {
		facts, err := core.Provided(k.Worker, r.Name, r.Details)
		return facts, k.first.CausedBy(service), err
	})
}

// token asks registry until it answers or the worker is not wanted any more.
func (e *Engine) token(ctx context.Context, k known) (Token, error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause/3) {
		t, err := e.Tokens.Issue(ctx, k.ID, tokenTTL)
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil || core.Lasting(err) {
			return Token{}, fmt.Errorf("get the token of worker %s: %w", k.ID, err)
		}
		e.Logger.WarnContext(ctx, "cannot get a worker's token, trying again", "worker", k.ID, "error", err, "in", pause)
		if !sleep(ctx, pause, nil) {
			return Token{}, ctx.Err()
		}
	}
}

// giveUp records that the resource could not be made; what there is of it is
// destroyed because the worker is TERMINATING then.
func (e *Engine) giveUp(ctx context.Context, k known, cause error) error {
	e.Logger.ErrorContext(ctx, "a worker cannot be made", "worker", k.ID, "provider", k.ProviderName, "error", cause, "alert", true)
	return e.decide(ctx, k.ID, func(k known) ([]worker.Event, event.Meta, error) {
		facts, err := core.GivenUp(k.Worker, cause)
		return facts, k.first.CausedBy(service), err
	})
}

// drain has a worker of a removed provider go: at once, or after its job.
func (e *Engine) drain(ctx context.Context, k known) error {
	e.mu.Lock()
	by := e.removedBy[k.ProviderID]
	e.mu.Unlock()
	if by == "" {
		by = "service/" + service
	}
	return e.decide(ctx, k.ID, func(k known) ([]worker.Event, event.Meta, error) {
		facts, err := core.Drained(k.Worker, by)
		return facts, k.own(), err
	})
}

// end destroys the resource and confirms in the log that nothing is left.
func (e *Engine) end(ctx context.Context, k known, keeper Provider, gone string) error {
	var err error
	switch {
	case keeper != nil:
		if err = e.soften(ctx, k, keeper, gone); err == nil {
			err = keeper.Destroy(ctx, k.ID)
		}
	case k.Provisioned:
		// It exists somewhere, and confirming its end would let its job start again beside it.
		err = fault.New(fault.Precondition, "provider %q is not known here: nobody can end what it made", k.ProviderName)
	}
	if err != nil {
		if ctx.Err() == nil {
			e.cannotEnd(ctx, k, err)
		}
		return fmt.Errorf("destroy the resource of worker %s: %w", k.ID, err)
	}
	e.canEnd(k)
	return e.decide(ctx, k.ID, func(k known) ([]worker.Event, event.Meta, error) {
		meta := k.own()
		if k.State == worker.StateTerminating {
			meta = k.following()
		}
		facts, err := core.Ended(k.Worker, gone)
		return facts, meta, err
	})
}

// margin is what an agent gets beside the grace of its job, to report the result.
const margin = 3 * time.Second

// soften gives what the worker runs its grace, counted from when the worker was told
// to go, so that another try does not begin it anew.
func (e *Engine) soften(ctx context.Context, k known, keeper Provider, gone string) error {
	g, ok := keeper.(Graceful)
	grace := k.Grace()
	if !ok || grace == 0 || gone != "" || k.fate.Goodbye {
		return nil
	}
	left := min(k.ChangedAt.Add(grace+margin).Sub(e.Now()), grace+margin)
	if end, ok := ctx.Deadline(); ok { // a provisioner that stops: there must be time to destroy it
		left = min(left, end.Sub(e.Now())/2)
	}
	if left <= 0 {
		return nil
	}
	return g.Stop(ctx, k.ID, left)
}

// clear destroys what is left of a worker that is no more, and says so where it was
// an orphan.
func (e *Engine) clear(ctx context.Context, id string) error {
	for _, kind := range e.Kinds {
		if !kind.Capabilities().Inventory {
			continue
		}
		if err := kind.Destroy(ctx, id); err != nil {
			return fmt.Errorf("destroy what is left of worker %s: %w", id, err)
		}
	}
	return e.cleared(ctx, id)
}

// decide changes the worker in the log and then in the model; where that leads to
// another state, the worker is looked at again.
func (e *Engine) decide(ctx context.Context, id string, decide func(k known) ([]worker.Event, event.Meta, error)) error {
	changed := false
	w, err := decideWorker(ctx, e.Log, id, func(k known) ([]worker.Event, event.Meta, error) {
		facts, meta, err := decide(k)
		changed = len(facts) > 0
		return facts, meta, err
	})
	if err != nil {
		return err
	}
	if m := e.current(); m != nil {
		e.warm.saw(w.ID, w.State, !w.ReadyAt.IsZero(), e.Now())
		m.worker(w)
	}
	if changed && w.State.Terminal() {
		wake(e.pool)
	}
	e.lookAgain(id, w)
	return nil
}

// lookAgain marks the worker's task as not done where it has to be ended now.
func (e *Engine) lookAgain(id string, w worker.Worker) {
	if w.State != worker.StateTerminating {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t, ok := e.tasks[id]; ok {
		t.again = true
	}
}
