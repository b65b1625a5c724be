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
)

// Sessions sends commands. It is safe for concurrent use.
type Sessions struct{ nc *nats.Conn }

// New returns the sessions that can be reached over nc.
func New(nc *nats.Conn) Sessions { return Sessions{nc: nc} }

// Available tells whether NATS is connected.
func (s Sessions) Available() bool { return s.nc.IsConnected() }

// Alive asks the session with that epoch whether its agent was heard of lately;
// false where nobody answers before ctx ends.
func (s Sessions) Alive(ctx context.Context, workerID string, epoch int64) bool {
	data, err := json.Marshal(command.Request{Kind: command.Ping, WorkerID: workerID})
	if err != nil {
		return false
	}
	msg, err := s.nc.RequestWithContext(ctx, bus.CommandSubject(workerID, epoch), data)
	if err != nil {
		return false
	}
	var reply command.Reply
	return json.Unmarshal(msg.Data, &reply) == nil && reply.OK
}

// Run asks the session with that epoch to take a job and waits, until ctx ends,
// for the answer. nil means that the agent has accepted; fault.Unavailable that
// nobody answered, fault.Precondition that the session refused.
func (s Sessions) Run(ctx context.Context, epoch int64, r command.Request) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode a command: %w", err)
	}
	msg, err := s.nc.RequestWithContext(ctx, bus.CommandSubject(r.WorkerID, epoch), data)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fault.New(fault.Unavailable, "no registry holds the worker's session %d", epoch)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fault.New(fault.Unavailable, "the worker's session %d did not answer in time", epoch)
	case err != nil:
		return fault.Wrap(fault.Unavailable, err, "ask the worker's session %d", epoch)
	}
	var reply command.Reply
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return fault.Wrap(fault.Internal, err, "decode the session's answer")
	}
	if !reply.OK {
		return fault.New(fault.Precondition, "the worker's session %d refused: %s", epoch, reply.Reason)
	}
	return nil
}
