package scheduler

import (
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/scheduler/core"
)

// Config is the scheduler's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// Admission says how much the scheduler takes on. What is more is refused with
	// RESOURCE_EXHAUSTED and a time to come back; what was taken on before is answered as ever.
	Admission Admission `yaml:"admission"`
}

// Admission is the limits of what is taken on. Each is at least 1, or "none". With
// several replicas, and while the read model lags, a limit on jobs may be exceeded by
// what was queued in the last second.
type Admission struct {
	// MaxJobs is how many jobs may be there that have not ended. Default 1000000.
	MaxJobs config.Limit `yaml:"max_jobs" env:"HODEI_ADMISSION_MAX_JOBS"`
	// MaxNamespaceJobs is the same for each namespace. Default 500000.
	MaxNamespaceJobs config.Limit `yaml:"max_namespace_jobs" env:"HODEI_ADMISSION_MAX_NAMESPACE_JOBS"`
	// MaxIntakeBytes is how many bytes of jobs may wait for the event log at once, in
	// each replica. Default 134217728, which is 128 MiB.
	MaxIntakeBytes config.Limit `yaml:"max_intake_bytes" env:"HODEI_ADMISSION_MAX_INTAKE_BYTES"`
}

// Default returns the defaults.
func Default() Config {
	return Config{
		Config:    chassis.DefaultConfig(),
		Admission: Admission{MaxJobs: 1_000_000, MaxNamespaceJobs: 500_000, MaxIntakeBytes: 128 << 20},
	}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	var wrong fault.Fields
	for name, limit := range map[string]config.Limit{
		"admission.max_jobs": c.Admission.MaxJobs, "admission.max_namespace_jobs": c.Admission.MaxNamespaceJobs,
		"admission.max_intake_bytes": c.Admission.MaxIntakeBytes,
	} {
		if limit < 1 {
			wrong.Add(name, "%s: at least 1, or none", limit)
		}
	}
	return wrong.Err("the configuration")
}

// limits are the same as the core has them.
func (a Admission) limits() core.Limits {
	limit := func(l config.Limit) int64 {
		if l == config.Unlimited {
			return 0
		}
		return int64(l)
	}
	return core.Limits{Jobs: limit(a.MaxJobs), NamespaceJobs: limit(a.MaxNamespaceJobs), IntakeBytes: limit(a.MaxIntakeBytes)}
}
