package provisioner

import (
	"errors"
	"fmt"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/unit"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/provisioner/internal/app"
)

// Config is the provisioner's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// RegistryAddress is registry's gRPC door, which issues the tokens of workers:
	// "host:port" or "unix:///path". Required.
	RegistryAddress string `yaml:"registry_address" env:"HODEI_REGISTRY_ADDRESS"`
	// StateDir is where process workers live; it must stay the same over restarts, for
	// workers are found again by it, and users of jobs must be able to search the directories
	// above it. Default /var/lib/hodei/provisioner.
	StateDir string `yaml:"state_dir" env:"HODEI_PROVISIONER_STATE_DIR"`
	// AgentBinary is the agent's program. Default: hodei-agent beside the own
	// executable, else in PATH.
	AgentBinary string `yaml:"agent_binary" env:"HODEI_AGENT_BINARY"`
	// RunAs is the user of jobs on process workers where a provider names none: a name, a
	// number or number:number. Default: as root an unprivileged user of its own for each
	// worker, else the own user.
	RunAs string `yaml:"run_as" env:"HODEI_RUN_AS"`
	// Providers are registered, or updated, at start.
	Providers []ProviderSpec `yaml:"providers"`
	// StopWorkers ends every process worker when the provisioner stops, within the
	// shutdown grace; otherwise they go on and are taken over by the next one. Default false.
	StopWorkers bool `yaml:"stop_workers" env:"HODEI_STOP_WORKERS"`
}

// ProviderSpec is a provider that is registered at start.
type ProviderSpec struct {
	// Name is a DNS label, unique. Required.
	Name string `yaml:"name"`
	// Kind is process or external. Default process.
	Kind string `yaml:"kind"`
	// MinIdle workers are kept ready without a job. Default 0.
	MinIdle int `yaml:"min_idle"`
	// MaxWorkers bounds the workers that exist at once. Default twice the CPUs.
	MaxWorkers int `yaml:"max_workers"`
	// JobsPerWorker is after how many jobs a worker ends; 0 = never. Default 1.
	JobsPerWorker *int `yaml:"jobs_per_worker"`
	// CPUMillis and MemoryBytes are the capacity that jobs reserve from. Default what
	// the machine has.
	CPUMillis   int64 `yaml:"cpu_millis"`
	MemoryBytes int64 `yaml:"memory_bytes"`
	// IdleTimeout ends a worker that has nothing to do. Default 5m.
	IdleTimeout config.Duration `yaml:"idle_timeout"`
	// ScheduledTimeout is how long a job waits for a worker of it. Default 5m.
	ScheduledTimeout config.Duration `yaml:"scheduled_timeout"`
	// RunAs is the user that its jobs run as. Default the configuration's run_as.
	RunAs string `yaml:"run_as"`
	// Labels are what jobs may require of the provider that runs them.
	Labels map[string]string `yaml:"labels"`
}

// Default returns the defaults.
func Default() Config {
	return Config{Config: chassis.DefaultConfig(), StateDir: "/var/lib/hodei/provisioner"}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	var wrong fault.Fields
	if e, ok := errors.AsType[*fault.Error](c.Config.Validate()); ok {
		wrong = append(wrong, e.Fields...)
	}
	if c.RegistryAddress == "" {
		wrong.Add("registry_address", "is required: set the key or the variable HODEI_REGISTRY_ADDRESS")
	}
	if c.StateDir == "" {
		wrong.Add("state_dir", "is required")
	}
	names := map[string]bool{}
	for i, p := range c.Providers {
		at := fmt.Sprintf("providers[%d]", i)
		if names[p.Name] {
			wrong.Add(at+".name", "%q is there twice", p.Name)
		}
		names[p.Name] = true
		// What the machine fills in is right by itself.
		spec := (&app.Providers{Machine: app.Machine{CPUs: 1, MemoryBytes: 1}}).Complete(p.spec())
		spec.MaxWorkers = max(spec.MaxWorkers, p.MinIdle)
		if e, ok := errors.AsType[*fault.Error](spec.Validate()); ok {
			for _, f := range e.Fields {
				wrong.Add(at+"."+f.Name, "%s", f.Problem)
			}
		}
	}
	return wrong.Err("the configuration")
}

// spec is what the domain calls it.
func (p ProviderSpec) spec() provider.Spec {
	s := provider.Spec{
		Name: p.Name, Kind: provider.Kind(p.Kind), MinIdle: p.MinIdle, MaxWorkers: p.MaxWorkers, JobsPerWorker: 1,
		CPUMillis: p.CPUMillis, MemoryBytes: p.MemoryBytes, RunAs: p.RunAs, Labels: p.Labels,
		IdleTimeout: unit.Duration(p.IdleTimeout), ScheduledTimeout: unit.Duration(p.ScheduledTimeout),
	}
	if p.Kind == "" {
		s.Kind = provider.Process
	}
	if p.JobsPerWorker != nil {
		s.JobsPerWorker = *p.JobsPerWorker
	}
	return s
}

// stopGrace is the part of the shutdown grace that ending all workers may take.
func (c *Config) stopGrace() time.Duration {
	if c.ShutdownGrace.IsNone() {
		return time.Minute
	}
	return c.ShutdownGrace.Std() * 3 / 4
}
