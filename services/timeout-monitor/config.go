package timeoutmonitor

import (
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/service/chassis"
	"hodei.dev/services/timeout-monitor/core"
)

// Config is the timeout-monitor's configuration.
type Config struct {
	chassis.Config `yaml:",inline"`
	// Thresholds say how long a job or a worker may stay in each state.
	Thresholds Thresholds `yaml:"thresholds"`
	// Concurrency is how many deadlines are recovered at once: 1 to 1024, default 32.
	Concurrency int `yaml:"concurrency" env:"HODEI_TIMEOUT_CONCURRENCY"`
	// Nearby is about how many deadlines are held in memory, those due first, at most
	// twice as many: 1000 to 1000000, default 50000. All others stay in Postgres
	// until their time comes.
	Nearby int `yaml:"nearby" env:"HODEI_TIMEOUT_NEARBY"`
}

// Thresholds is the table of R5.2. Each is more than zero, or "none": that state is
// then not watched. A job's queue timeout and execution timeout are its own.
type Thresholds struct {
	// JobAssigned is how long a worker may take to accept a job. Default 30s.
	JobAssigned config.Duration `yaml:"job_assigned" env:"HODEI_TIMEOUT_JOB_ASSIGNED"`
	// JobScheduled is how long a job waits for a worker of a provider that is not
	// known; those that are registered say it themselves (scheduled_timeout). Default 5m.
	JobScheduled config.Duration `yaml:"job_scheduled" env:"HODEI_TIMEOUT_JOB_SCHEDULED"`
	// KillGrace is the time between TERM and KILL, as agents keep it; not "none". Default 10s.
	KillGrace config.Duration `yaml:"kill_grace" env:"HODEI_TIMEOUT_KILL_GRACE"`
	// JobRunning is what a RUNNING job gets on top of its execution timeout and the
	// kill grace before its worker is destroyed: its agent ends it earlier. Default 5s.
	JobRunning config.Duration `yaml:"job_running" env:"HODEI_TIMEOUT_JOB_RUNNING"`
	// JobCancel is how long, on top of the kill grace, a cancel may stay without an
	// answer before the worker is destroyed. Default 10s.
	JobCancel config.Duration `yaml:"job_cancel" env:"HODEI_TIMEOUT_JOB_CANCEL"`
	// WorkerCreating is how long a provider may take to make a worker. Default 5m.
	WorkerCreating config.Duration `yaml:"worker_creating" env:"HODEI_TIMEOUT_WORKER_CREATING"`
	// WorkerConnecting is how long an agent may take to dial in. Default 1m.
	WorkerConnecting config.Duration `yaml:"worker_connecting" env:"HODEI_TIMEOUT_WORKER_CONNECTING"`
	// WorkerIdle is how long a worker of a provider that is not known may be READY
	// without a job; those that are registered say it themselves (idle_timeout). Default 5m.
	WorkerIdle config.Duration `yaml:"worker_idle" env:"HODEI_TIMEOUT_WORKER_IDLE"`
	// WorkerSilence is how long a connected worker may be without a heartbeat (they
	// come every 5s, its lease is 20s). Default 30s.
	WorkerSilence config.Duration `yaml:"worker_silence" env:"HODEI_TIMEOUT_WORKER_SILENCE"`
	// WorkerDraining is how long a drained worker may take to finish its job, which
	// has a timeout of its own. Default none.
	WorkerDraining config.Duration `yaml:"worker_draining" env:"HODEI_TIMEOUT_WORKER_DRAINING"`
	// WorkerTerminating is how long a provider may take to destroy a worker before
	// that is noted, again and again with growing distance. Default 2m.
	WorkerTerminating config.Duration `yaml:"worker_terminating" env:"HODEI_TIMEOUT_WORKER_TERMINATING"`
	// WorkerLifetime is how long a worker may live; then it is drained. Default 24h.
	WorkerLifetime config.Duration `yaml:"worker_lifetime" env:"HODEI_TIMEOUT_WORKER_LIFETIME"`
}

// Default returns the defaults: the table of R5.2.
func Default() Config {
	t := deadline.Defaults()
	return Config{
		Config: chassis.DefaultConfig(), Concurrency: 32, Nearby: 50_000,
		Thresholds: Thresholds{
			JobAssigned: shown(t.JobAssigned), JobScheduled: shown(t.JobScheduled), KillGrace: shown(t.KillGrace),
			JobRunning: shown(t.BackstopMargin), JobCancel: shown(t.CancelMargin), WorkerCreating: shown(t.WorkerCreating),
			WorkerConnecting: shown(t.WorkerConnecting), WorkerIdle: shown(core.DefaultIdleTimeout), WorkerSilence: shown(t.WorkerSilence),
			WorkerDraining: shown(t.WorkerDraining), WorkerTerminating: shown(t.WorkerTerminating), WorkerLifetime: shown(t.WorkerLifetime),
		},
	}
}

// Validate reports every wrong field.
func (c *Config) Validate() error {
	if err := c.Config.Validate(); err != nil {
		return err
	}
	var wrong fault.Fields
	if c.Concurrency < 1 || c.Concurrency > 1024 {
		wrong.Add("concurrency", "%d: from 1 to 1024", c.Concurrency)
	}
	if c.Nearby < 1000 || c.Nearby > 1_000_000 {
		wrong.Add("nearby", "%d: from 1000 to 1000000", c.Nearby)
	}
	return wrong.Err("the configuration")
}

// Validate refuses zero and negative thresholds: whoever wants none says so.
func (t *Thresholds) Validate() error {
	var wrong fault.Fields
	for name, d := range map[string]config.Duration{
		"job_assigned": t.JobAssigned, "job_scheduled": t.JobScheduled, "kill_grace": t.KillGrace, "job_running": t.JobRunning,
		"job_cancel": t.JobCancel, "worker_creating": t.WorkerCreating, "worker_connecting": t.WorkerConnecting,
		"worker_idle": t.WorkerIdle, "worker_silence": t.WorkerSilence, "worker_draining": t.WorkerDraining,
		"worker_terminating": t.WorkerTerminating, "worker_lifetime": t.WorkerLifetime,
	} {
		if d <= 0 {
			wrong.Add(name, `%s: more than 0, or "none"`, d)
		}
	}
	if t.KillGrace.IsNone() {
		wrong.Add("kill_grace", "none: agents do kill; say after how long")
	}
	return wrong.Err("the thresholds")
}

// rules are the thresholds as core takes them.
func (t Thresholds) rules() core.Rules {
	return core.Rules{IdleTimeout: std(t.WorkerIdle), Table: deadline.Table{
		JobAssigned: std(t.JobAssigned), JobScheduled: std(t.JobScheduled), KillGrace: std(t.KillGrace),
		BackstopMargin: std(t.JobRunning), CancelMargin: std(t.JobCancel), WorkerCreating: std(t.WorkerCreating),
		WorkerConnecting: std(t.WorkerConnecting), WorkerSilence: std(t.WorkerSilence), WorkerDraining: std(t.WorkerDraining),
		WorkerTerminating: std(t.WorkerTerminating), WorkerLifetime: std(t.WorkerLifetime),
	}}
}

// shown is a threshold of the domain, where 0 means none, as people write it.
func shown(d time.Duration) config.Duration {
	if d == 0 {
		return config.None
	}
	return config.Duration(d)
}

func std(d config.Duration) time.Duration {
	if d.IsNone() {
		return 0
	}
	return d.Std()
}
