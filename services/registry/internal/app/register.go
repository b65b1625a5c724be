package app

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/services/registry/core"
)

// IssueToken makes the registration token of a worker, good for ttl; an earlier
// one is void. The worker must exist and not be going.
func (a *App) IssueToken(ctx context.Context, workerID string, ttl time.Duration) (token string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = core.DefaultTokenTTL
	}
	if ttl < 0 || ttl > core.MaxTokenTTL {
		var wrong fault.Fields
		wrong.Add("ttl", "%s must be above zero and at most %s", ttl, core.MaxTokenTTL)
		return "", time.Time{}, wrong.Err("the request")
	}
	w, err := a.loadWorker(ctx, workerID)
	if err != nil {
		return "", time.Time{}, err
	}
	if w.State == worker.StateTerminating || w.State == worker.StateTerminated {
		return "", time.Time{}, fault.New(fault.Precondition, "worker %s is %s: it takes no agent any more", workerID, w.State)
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	token = base64.RawURLEncoding.EncodeToString(raw)
	expires = a.Now().Add(ttl).UTC()
	if err := a.Credentials.PutToken(ctx, workerID, core.Token{Hash: core.HashSecret(token), ExpiresAt: expires}); err != nil {
		return "", time.Time{}, err
	}
	return token, expires, nil
}

// Registration is what an agent says of itself when it registers.
type Registration struct {
	WorkerID, Token, Nonce string
	AgentVersion, Hostname string
	PID                    int
	// Peer is the address that it calls from.
	Peer string
}

// Register trades a token for the secret of a session. A refusal is a
// fault.Denied that says nothing of why, and WorkerRegistrationRejected in the
// log that does. Repeated with the same nonce it gives the same answer.
func (a *App) Register(ctx context.Context, r Registration) (secret string, err error) {
	if err := r.validate(); err != nil {
		return "", err
	}
	w, err := a.loadWorker(ctx, r.WorkerID)
	if err != nil {
		if errors.Is(err, fault.NotFound) || errors.Is(err, fault.Invalid) {
			return "", refused() // who has no token learns nothing about workers
		}
		return "", err
	}
	t, err := a.Credentials.Token(ctx, r.WorkerID)
	if err != nil {
		return "", err
	}
	if err := t.Admit(r.Token, r.Nonce, a.Now()); err != nil {
		return "", a.reject(ctx, w, r, err)
	}
	if w.State == worker.StateTerminating || w.State == worker.StateTerminated {
		return "", a.reject(ctx, w, r, fault.New(fault.Precondition, "the worker is %s", w.State))
	}
	secret = core.SessionSecret(r.WorkerID, r.Token, r.Nonce)
	err = a.Credentials.UseToken(ctx, r.WorkerID, core.HashSecret(r.Token), r.Nonce, core.HashSecret(secret))
	if errors.Is(err, fault.Conflict) {
		return "", a.reject(ctx, w, r, errors.New("the token was used or replaced in the same moment"))
	}
	if err != nil {
		return "", err
	}
	first := t.Nonce == ""
	return secret, a.registered(ctx, w, r, first)
}

func (r Registration) validate() error {
	var wrong fault.Fields
	if r.WorkerID == "" {
		wrong.Add("worker_id", "is empty")
	}
	if r.Token == "" {
		wrong.Add("token", "is empty")
	}
	if r.Nonce == "" || len(r.Nonce) > core.MaxNonce || core.Clean(r.Nonce, core.MaxNonce) != r.Nonce {
		wrong.Add("nonce", "must have 1 to %d bytes", core.MaxNonce)
	}
	return wrong.Err("the registration")
}

// registered records that the agent has proven itself. first is false where the
// token had been used with this nonce before: then the log may have it already.
func (a *App) registered(ctx context.Context, w knownWorker, r Registration, first bool) error {
	var err error
	for range rounds {
		if w.registered && !first {
			return nil
		}
		facts, derr := core.Registered(w.Worker, worker.Registered{
			AgentVersion: core.Clean(r.AgentVersion, 128), Hostname: core.Clean(r.Hostname, 256), PID: r.PID,
		})
		if derr != nil {
			return derr
		}
		change, cerr := w.change(w.meta("worker/"+w.ID), facts)
		if cerr != nil {
			return cerr
		}
		if _, err = a.appendChanges(ctx, change); !errors.Is(err, fault.Conflict) {
			return err
		}
		if w, err = a.loadWorker(ctx, r.WorkerID); err != nil {
			return err
		}
	}
	return err
}

// reject refuses an agent and notes why, at a bounded rate: whoever guesses must
// not be able to fill the log.
func (a *App) reject(ctx context.Context, w knownWorker, r Registration, why error) error {
	reason := why.Error()
	if f := (*fault.Error)(nil); errors.As(why, &f) {
		reason = f.Message
	}
	a.Logger.WarnContext(ctx, "a registration is refused", "worker", r.WorkerID, "peer", r.Peer, "reason", reason)
	if !a.refusals.allow(r.WorkerID, a.Now()) {
		return refused()
	}
	for range rounds {
		meta := w.meta("service/" + name)
		change, err := w.change(meta, []worker.Event{worker.RegistrationRejected{Reason: reason, Peer: r.Peer}})
		if err != nil {
			return err
		}
		if _, err = a.appendChanges(ctx, change); err == nil {
			break
		} else if !errors.Is(err, fault.Conflict) {
			return err
		}
		if w, err = a.loadWorker(ctx, r.WorkerID); err != nil {
			return err
		}
	}
	return refused()
}

func refused() error {
	return fault.New(fault.Denied, "the registration is refused").
		WithCode("TOKEN_REFUSED", "a token is good for one registration of its own worker, for a short time: get a new one; the worker's history says why")
}

// limiter allows a burst of refusals a minute to each worker.
type limiter struct {
	mu    sync.Mutex // guards seen
	seen  map[string]int
	since time.Time
}

const (
	refusalBurst  = 10
	refusalWindow = time.Minute
)

func (l *limiter) allow(workerID string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil || now.Sub(l.since) >= refusalWindow {
		l.seen, l.since = map[string]int{}, now
	}
	l.seen[workerID]++
	return l.seen[workerID] <= refusalBurst
}
