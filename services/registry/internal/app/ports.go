package app

import (
	"context"
	"log/slog"
	"time"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/command"
	"hodei.dev/services/registry/core"
)

// name is the service, as the source and actor of what it appends by itself.
const name = "registry"

// rounds is how often a decision that met a conflict is taken again.
const rounds = 5

// Log is the event log; a *store.Store is one.
type Log interface {
	aggregate.Loader
	store.Appender
	// FindStreams returns at most limit streams whose id begins with a prefix.
	FindStreams(ctx context.Context, streamType, idPrefix string, limit int) ([]store.StreamRow, error)
}

// Credentials keeps tokens and sessions, in hashed form only.
type Credentials interface {
	// PutToken stores a worker's token in the place of an earlier one.
	PutToken(ctx context.Context, workerID string, t core.Token) error
	// Token returns what is stored; the zero Token where there is none.
	Token(ctx context.Context, workerID string) (core.Token, error)
	// UseToken marks the token as used with a nonce and stores the session that came of
	// it, at once. It is a fault.Conflict where the token is not stored any more or was
	// used with another nonce. Repeated, it changes nothing.
	UseToken(ctx context.Context, workerID string, tokenHash []byte, nonce string, sessionHash []byte) error
	// Authenticate returns the worker of a session; fault.Denied where there is none.
	Authenticate(ctx context.Context, sessionHash []byte) (workerID string, err error)
	// OpenSession gives the session its next epoch, for a connection that its agent
	// counts as newer than the last one that got an epoch; 0 = it does not count, and
	// never has. It is fault.Denied where there is no such session, and a
	// fault.Precondition, which changes nothing, where the connection is not newer.
	OpenSession(ctx context.Context, sessionHash []byte, connection int64, replica string) (workerID string, epoch int64, err error)
	// LastHeartbeats returns when the workers were last heard of, as far as stored.
	LastHeartbeats(ctx context.Context, workerIDs []string) (map[string]time.Time, error)
	// Retire voids the token of a worker that was given up with an attempt. Its session
	// is kept for a while: an agent that comes back is told to end, and its result is
	// evidence.
	Retire(ctx context.Context, workerID string) error
	// Forget removes the token and the session of a worker that is no more.
	Forget(ctx context.Context, workerID string) error
}

// Sessions reaches the live session of a worker, on whichever replica it is.
type Sessions interface {
	// Tell sends a command and does not wait for an answer: a lost one is made up for when the agent reconnects.
	Tell(ctx context.Context, epoch int64, r command.Request) error
	// Alive asks the session whether its agent was heard of lately; false where nobody answers.
	Alive(ctx context.Context, workerID string, epoch int64) bool
}

// App is the use cases. Its fields are set once; it is safe for concurrent use.
type App struct {
	Log         Log
	Credentials Credentials
	Sessions    Sessions
	// Now is the clock.
	Now func() time.Time
	// Jitter returns numbers from 0 up to 1: chance, where a policy has any.
	Jitter func() float64
	// Logger gets what an operator should know.
	Logger *slog.Logger

	refusals limiter
}

// appendChanges appends what is not empty and returns the events as the log has them.
func (a *App) appendChanges(ctx context.Context, changes ...store.Change) ([]event.Event, error) {
	var some []store.Change
	for _, c := range changes {
		if len(c.Events) > 0 {
			some = append(some, c)
		}
	}
	if len(some) == 0 {
		return nil, nil
	}
	return a.Log.Append(ctx, store.Append{Changes: some})
}
