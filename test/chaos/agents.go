package main

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// agentsLink leads agents to any registry that answers.
func (p *platform) agentsLink(doors []string) (*link, error) {
	var turn int
	var mu sync.Mutex // guards turn
	k, err := newLink("agents-registry", func() (net.Conn, error) {
		mu.Lock()
		turn++
		first := turn
		mu.Unlock()
		var errs error
		for i := range doors {
			c, err := net.DialTimeout("tcp", doors[(first+i)%len(doors)], 5*time.Second)
			if err == nil {
				return c, nil
			}
			errs = errors.Join(errs, err)
		}
		return nil, errs
	}, p.agentPIDs)
	if err == nil {
		p.links = append(p.links, k)
	}
	return k, err
}

// agent is a worker's agent that runs.
type agent struct {
	worker string
	pid    int
}

// liveAgents are those that the provisioner's own records name and that run.
func (p *platform) liveAgents() []agent {
	files, _ := filepath.Glob(filepath.Join(p.stateDir(), "workers", "*", "worker.json")) // the pattern is right
	var out []agent
	for _, file := range files {
		content, err := os.ReadFile(file)
		var record struct {
			WorkerID string `json:"worker_id"`
			Agent    struct {
				PID int `json:"pid"`
			} `json:"agent"`
		}
		if err != nil || json.Unmarshal(content, &record) != nil || record.Agent.PID == 0 {
			continue
		}
		if syscall.Kill(record.Agent.PID, 0) == nil {
			out = append(out, agent{worker: record.WorkerID, pid: record.Agent.PID})
		}
	}
	return out
}

func (p *platform) agentPIDs() []int {
	var out []int
	for _, a := range p.liveAgents() {
		out = append(out, a.pid)
	}
	return out
}
