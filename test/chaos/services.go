package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// instances are the names of all processes of services.
func (p *platform) instances() []string {
	out := slices.Clone(services)
	if p.replicated {
		for _, s := range standbys {
			out = append(out, s+"-2")
		}
	}
	return out
}

// makeServices gives each instance links and an environment of its own.
func (p *platform) makeServices() error {
	socket, err := p.socket()
	if err != nil {
		return err
	}
	if p.gateway, err = freeAddress(); err != nil {
		return err
	}
	var doors []string
	for _, name := range p.instances() {
		if strings.HasPrefix(name, "registry") {
			door, err := freeAddress()
			if err != nil {
				return err
			}
			doors = append(doors, door)
		}
	}
	if p.agents, err = p.agentsLink(doors); err != nil {
		return err
	}
	if err := p.writeProviders(); err != nil {
		return err
	}
	for _, name := range p.instances() {
		if p.pgLinks[name], err = p.link(name+"-postgres", socket); err != nil {
			return err
		}
		var urls []string
		for _, n := range p.nodes {
			k, err := p.link(name+"-"+n.name, fmt.Sprintf("127.0.0.1:%d", n.port))
			if err != nil {
				return err
			}
			p.busLinks[name] = append(p.busLinks[name], k)
			urls = append(urls, "nats://"+k.Addr())
		}
		service := strings.TrimSuffix(name, "-2")
		s := &process{name: name, path: filepath.Join(p.bin, "hodei-"+service), log: p.logFile(name)}
		listen := p.door(name)
		switch name {
		case "gateway":
			listen = p.gateway
		case "provisioner":
			s.args = []string{"--config", filepath.Join(p.dir, "provisioner.yaml")}
		case "registry-2":
			s.env = append(s.env, "HODEI_AGENT_LISTEN="+doors[1])
		case "registry":
			s.env = append(s.env, "HODEI_AGENT_LISTEN="+doors[0])
		}
		s.env = append(append(s.env, p.env()...),
			"HODEI_POSTGRES_URL=postgres://hodei@"+p.pgLinks[name].Addr()+"/hodei?sslmode=disable",
			"HODEI_NATS_URL="+strings.Join(urls, ","), "HODEI_LISTEN="+listen)
		p.services[name] = s
	}
	return nil
}

func (p *platform) door(name string) string {
	return "unix://" + filepath.Join(p.dir, name+".sock")
}

// env is what every service has in its environment.
func (p *platform) env() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir, "HODEI_LOG_LEVEL=info", "HODEI_AGENT_ADDRESS=" + p.agents.Addr(), "HODEI_SERVER=" + p.gateway,
		fmt.Sprintf("HODEI_NATS_REPLICAS=%d", len(p.nodes)),
	}
	for _, s := range services {
		env = append(env, "HODEI_"+strings.ToUpper(strings.ReplaceAll(s, "-", "_"))+"_ADDRESS="+p.door(s))
	}
	return env
}

func (p *platform) writeProviders() error {
	file := fmt.Sprintf(`state_dir: %s
providers:
  - {name: %s, kind: process, max_workers: %d, jobs_per_worker: %d, min_idle: %d}
  - {name: %s, kind: process, max_workers: 3, jobs_per_worker: 1}
`, p.stateDir(), providerLoad, p.workers, p.jobsPerWorker, p.minIdle, providerProbe)
	return os.WriteFile(filepath.Join(p.dir, "provisioner.yaml"), []byte(file), 0o600)
}

// hodei runs the command line.
func (p *platform) hodei(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "hodei"), args...)
	cmd.Env = append(p.env(), "HODEI_POSTGRES_URL="+p.database())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// waitReady waits until every service is ready and has handled the log.
func (p *platform) waitReady(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		why := p.unready(ctx)
		if why == "" {
			return nil
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("not ready within %s: %s", within, why)
		}
	}
}

// unready says what is not ready; empty when everything is.
func (p *platform) unready(ctx context.Context) string {
	out, err := p.hodei(ctx, "status", "-o", "json")
	if err != nil {
		return strings.TrimSpace(out)
	}
	var status struct {
		Services []struct {
			Name        string            `json:"name"`
			Ready       bool              `json:"ready"`
			Unreachable bool              `json:"unreachable"`
			Lag         int64             `json:"lag"`
			Problems    map[string]string `json:"problems"`
		} `json:"services"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return err.Error()
	}
	for _, s := range status.Services {
		if !s.Ready || s.Unreachable || s.Lag > 0 {
			return fmt.Sprintf("%+v", s)
		}
	}
	if len(status.Services) < len(services)-1 {
		return fmt.Sprintf("only %d services answer", len(status.Services))
	}
	return ""
}

// stopServices ends them all with SIGTERM.
func (p *platform) stopServices() error {
	var errs error
	names := p.instances()
	slices.Reverse(names)
	for _, name := range names {
		errs = errors.Join(errs, p.services[name].stop(40*time.Second))
	}
	return errs
}
