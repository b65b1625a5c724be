// Package registry asks the registry service for what agents register with.
package registry

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"hodei.dev/libs/domain/fault"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	"hodei.dev/services/provisioner/internal/app"
)

// timeout bounds one question: who asks tries again.
const timeout = 5 * time.Second

// Tokens implements app.Tokens over gRPC.
type Tokens struct {
	client registryv1.WorkerTokenServiceClient
}

// NewTokens returns the tokens of the registry behind a connection.
func NewTokens(conn grpc.ClientConnInterface) *Tokens {
	return &Tokens{registryv1.NewWorkerTokenServiceClient(conn)}
}

// Issue asks for the token of a worker.
func (t *Tokens) Issue(ctx context.Context, workerID string, ttl time.Duration) (app.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := t.client.IssueToken(ctx, &registryv1.IssueTokenRequest{WorkerId: workerID, Ttl: ttl.String()})
	if err != nil {
		return app.Token{}, err
	}
	if out.GetToken() == "" || out.GetAgentAddress() == "" {
		return app.Token{}, fault.New(fault.Internal, "registry answered without a token or without the address of agents")
	}
	return app.Token{Value: out.GetToken(), AgentAddress: out.GetAgentAddress(), ExpiresAt: out.GetExpiresAt().AsTime()}, nil
}
