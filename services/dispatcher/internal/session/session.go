// Package session is the way to the sessions of workers over NATS request/reply.
// It implements the port of the same name in internal/app.
package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/service/command"

	"hodei.dev/services/dispatcher/internal/app"
)

// Sessions sends commands. It is safe for concurrent use.
type Sessions struct{ nc *nats.Conn }

// New returns the sessions that can be reached over nc.
func New(nc *nats.Conn) Sessions { return Sessions{nc: nc} }

// Available tells whether NATS is connected.
func (s Sessions) Available() bool { return s.nc.IsConnected() }

// Ping asks the session with that epoch whether its agent was heard of lately; an
// error says that nobody answered before ctx ended.
func (s Sessions) Ping(ctx context.Context, workerID string, epoch int64) (alive bool, err error) {
	reply, err := s.ask(ctx, epoch, command.Request{Kind: command.Ping, WorkerID: workerID})
	return reply.OK, err
}

// Run asks the session with that epoch to take a job and waits, until ctx ends,
// for the answer. nil means that the agent has accepted; an *app.SessionGone that the
// session is over or nowhere, fault.Unavailable that nobody answered, fault.Precondition
// that the session refused.
func (s Sessions) Run(ctx context.Context, epoch int64, r command.Request) error {
	reply, err := s.ask(ctx, epoch, r)
	switch {
	case err != nil:
		return err
	case reply.Gone:
		return &app.SessionGone{Answered: true, Reason: fmt.Sprintf("the worker's session %d is over: %s", epoch, reply.Reason)}
	case !reply.OK:
		return fault.New(fault.Precondition, "the worker's session %d refused: %s", epoch, reply.Reason)
	}
	return nil
}

func (s Sessions) ask(ctx context.Context, epoch int64, r command.Request) (reply command.Reply, err error) {
	data, err := json.Marshal(r)
	if err != nil {
		return reply, fmt.Errorf("encode a command: %w", err)
	}
	msg, err := s.nc.RequestWithContext(ctx, bus.CommandSubject(r.WorkerID, epoch), data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return reply, &app.SessionGone{Reason: fmt.Sprintf("no registry holds the worker's session %d", epoch)}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return reply, fault.New(fault.Unavailable, "the worker's session %d did not answer in time", epoch)
	case err != nil:
		return reply, fault.Wrap(fault.Unavailable, err, "ask the worker's session %d", epoch)
	}
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return reply, fault.Wrap(fault.Internal, err, "decode the session's answer")
	}
	return reply, nil
}
