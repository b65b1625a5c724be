// Package process is the main of a service, so that services look alike from the
// outside: the same flags, commands, signals, exit codes, logs and health pages.
//
//	func main() {
//		process.Main(process.Service[scheduler.Config]{
//			Name: "scheduler", Short: "takes jobs and answers for them",
//			Default: scheduler.Defaults, Run: scheduler.Run, Migrate: scheduler.Migrate,
//		})
//	}
package process

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"go.opentelemetry.io/otel"

	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/lifecycle"
	"hodei.dev/libs/platform/telemetry"
)

// The exit codes of a service.
const (
	// ExitOK: it stopped cleanly because it was asked to.
	ExitOK = 0
	// ExitFailed: it failed; the log says how.
	ExitFailed = 1
	// ExitUsage: flags or configuration are wrong; nothing was touched.
	ExitUsage = 2
)

// Service describes a service with the configuration C, a struct that embeds
// config.Common.
type Service[C any] struct {
	// Name without the prefix "hodei-", such as "scheduler".
	Name string
	// Short says in one line what the service does.
	Short string
	// Default returns the configuration that file and environment are laid over.
	Default func() C
	// Run is the service. It blocks until ctx ends, drains within
	// C.Common.ShutdownGrace, and returns nil or ctx's error.
	Run func(ctx context.Context, cfg C, env Env) error
	// Migrate brings the service's database schema up to date and returns; nil for a
	// service without one.
	Migrate func(ctx context.Context, cfg C) error
}

// Env is what a process gives to the service in it.
type Env struct {
	// Log is the service's logger.
	Log *slog.Logger
	// Tel is its telemetry; Tel.Log is Log.
	Tel *telemetry.Telemetry
	// Health is where its parts report whether they are ready.
	Health *Health
	// Version of the build.
	Version string
}

// Configured is a configuration that embeds config.Common.
type Configured interface{ CommonConfig() *config.Common }

// Main runs the service with the arguments, environment and signals of the process
// and ends the process. SIGINT and SIGTERM stop the service; a second one ends the
// process at once. P is inferred.
func Main[C any, P interface {
	*C
	Configured
}](s Service[C]) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		os.Exit(ExitFailed)
	}()
	if os.Getenv("GOGC") == "" {
		// Services hold little and allocate much: fewer collections paid.
		debug.SetGCPercent(400)
	}
	os.Exit(Execute[C, P](ctx, s, Command{Args: os.Args[1:], Environ: os.Environ(), Stdout: os.Stdout, Stderr: os.Stderr}))
}

// flushTime is how long the exporters may take for what is left at the end.
const flushTime = 3 * time.Second

// run is the root command: the service, with telemetry and health around it. A
// failure of the service is logged already.
func run[C any](ctx context.Context, s Service[C], cfg C, common *config.Common, log telemetry.Options) error {
	log.Service, log.Version = s.Name, Version()
	log.LogLevel, log.LogFormat = common.LogLevel, common.LogFormat
	tel, err := telemetry.Setup(ctx, log)
	if err != nil {
		return err
	}
	// What an exporter reports has no other way out. This is the process's own
	// setting, so it stands here and not in telemetry.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { tel.Log.Warn("telemetry", "error", err) }))
	health := NewHealth(tel.Metrics())
	env := Env{Log: tel.Log, Tel: tel, Health: health, Version: log.Version}
	tel.Log.InfoContext(ctx, "starting", "version", env.Version)
	began := time.Now()
	health.OnChange(func(ready bool) {
		if ready {
			tel.Log.InfoContext(ctx, "ready", "after", time.Since(began).Round(time.Millisecond).String())
		}
	})
	err = lifecycle.Run(
		ctx, outer(common.ShutdownGrace), tel.Log,
		lifecycle.Part{Name: "health", Run: func(ctx context.Context) error { return health.Run(ctx, common.HealthListen) }},
		lifecycle.Part{Name: s.Name, Run: func(ctx context.Context) error { return s.Run(ctx, cfg, env) }},
		lifecycle.Part{Name: "readiness", Run: func(ctx context.Context) error {
			// The last to start is the first to stop: nobody sends work to a service that drains.
			<-ctx.Done()
			tel.Log.InfoContext(ctx, "stopping")
			health.Stopping()
			return nil
		}},
	)
	if err != nil {
		tel.Log.ErrorContext(ctx, "failed", "error", err)
	} else {
		tel.Log.InfoContext(ctx, "stopped")
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
	defer cancel()
	if ferr := tel.Shutdown(flush); ferr != nil {
		tel.Log.WarnContext(ctx, "telemetry is not complete", "error", ferr)
	}
	if err != nil {
		return logged{err}
	}
	return nil
}

// outer is the grace around the service's own, so that the service, which knows its
// parts by name, is the one to report what hangs.
func outer(grace config.Duration) time.Duration {
	if grace.IsNone() {
		return grace.Std()
	}
	return grace.Std() + 2*time.Second
}
