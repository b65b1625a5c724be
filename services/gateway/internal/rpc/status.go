package rpc

import (
	"context"
	"sync"
	"time"

	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// askTimeout is how long one service may take to say how it is, examineTimeout
// how long to look for what is off.
const (
	askTimeout     = 2 * time.Second
	examineTimeout = 20 * time.Second
)

// status serves StatusService for all services at once.
type status struct {
	platformv1.UnimplementedStatusServiceServer
	backends *Backends
}

// GetStatus asks every service; one that does not answer is in the list as
// unreachable, with the reason.
func (s status) GetStatus(ctx context.Context, req *platformv1.GetStatusRequest) (*platformv1.GetStatusResponse, error) {
	out := &platformv1.GetStatusResponse{Services: make([]*platformv1.ServiceStatus, len(s.backends.names))}
	within := askTimeout
	if req.GetExamine() {
		within = examineTimeout
	}
	var wg sync.WaitGroup
	for i, name := range s.backends.names {
		wg.Go(func() {
			ask, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			resp, err := platformv1.NewStatusServiceClient(s.backends.conns[name]).GetStatus(ask, req)
			if err != nil || len(resp.GetServices()) != 1 {
				problem := "answered with nothing"
				if err != nil {
					problem = err.Error()
				}
				out.Services[i] = &platformv1.ServiceStatus{Name: name, Unreachable: true, Problems: map[string]string{"rpc": problem}}
				return
			}
			out.Services[i] = resp.GetServices()[0]
		})
	}
	wg.Wait()
	return out, nil
}
