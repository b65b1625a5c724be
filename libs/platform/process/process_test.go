package process_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hodei.dev/libs/platform/config"
	"hodei.dev/libs/platform/process"
)

// TestMain is also the main of the service that the signal tests run as a process.
func TestMain(m *testing.M) {
	if os.Getenv("HODEI_TEST_SERVICE") != "" {
		process.Main(service(func(ctx context.Context, cfg settings, env process.Env) error {
			env.Health.Check("all")(nil)
			<-ctx.Done()
			if cfg.Stubborn {
				select {}
			}
			return nil
		}))
	}
	goleak.VerifyTestMain(m)
}

type settings struct {
	config.Common
	// Stubborn services do not stop.
	Stubborn bool `yaml:"stubborn" env:"HODEI_STUBBORN"`
}

func service(run func(context.Context, settings, process.Env) error) process.Service[settings] {
	return process.Service[settings]{
		Name: "test", Short: "is tested",
		Default: func() settings { return settings{Common: config.DefaultCommon()} },
		Run:     run,
		Migrate: func(_ context.Context, cfg settings) error {
			if cfg.PostgresURL == "" {
				return errors.New("no database")
			}
			return nil
		},
	}
}

type result struct {
	code           int
	stdout, stderr string
}

func execute(ctx context.Context, s process.Service[settings], env []string, args ...string) result {
	var stdout, stderr bytes.Buffer
	code := process.Execute(ctx, s, process.Command{Args: args, Environ: env, Stdout: &stdout, Stderr: &stderr})
	return result{code, stdout.String(), stderr.String()}
}

func TestCommands(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("log_level: loud\nlisten_on: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	never := func(context.Context, settings, process.Env) error { panic("the service ran") }
	for name, tc := range map[string]struct {
		args   []string
		env    []string
		code   int
		stdout []string
		stderr []string
	}{
		"version":       {args: []string{"version"}, stdout: []string{"hodei-test "}},
		"version json":  {args: []string{"version", "-o", "json"}, stdout: []string{`"name":"hodei-test"`, `"version":"`}},
		"version xml":   {args: []string{"version", "-o", "xml"}, code: 2, stderr: []string{"text or json"}},
		"migrate":       {args: []string{"migrate"}, env: []string{"HODEI_POSTGRES_URL=x"}},
		"migrate fails": {args: []string{"migrate"}, code: 1, stderr: []string{"migrating: no database"}},
		"print": {
			args: []string{"--print-config"}, env: []string{"HODEI_NATS_URL=nats://hunter2"},
			stdout: []string{`nats_url: "***"`, "stubborn: false", "shutdown_grace: 20s"},
		},
		"print of a bad one": {
			args: []string{"--print-config", "--config", bad}, code: 2,
			stdout: []string{"log_level: loud"}, stderr: []string{"listen_on: bad.yaml line 2: unknown key"},
		},
		"bad configuration": {
			args: []string{"--config", bad}, env: []string{"HODEI_STUBBORN=maybe"}, code: 2,
			stderr: []string{"log_level:", "listen_on: bad.yaml line 2", "stubborn (HODEI_STUBBORN)", "--print-config"},
		},
		"bad configuration, migrate": {args: []string{"migrate", "--config", bad}, code: 2, stderr: []string{"listen_on"}},
		"no such file":               {args: []string{"--config", "/nonexistent.yaml"}, code: 2, stderr: []string{"--config: the file cannot be read"}},
		"unknown flag":               {args: []string{"--frobnicate"}, code: 2, stderr: []string{"unknown flag: --frobnicate"}},
		"unknown command":            {args: []string{"frobnicate"}, code: 2, stderr: []string{`unknown command "frobnicate"`}},
		"help":                       {args: []string{"--help"}, stdout: []string{"hodei-test is tested", "--config FILE", "migrate", "version"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := execute(t.Context(), service(never), tc.env, tc.args...)
			if got.code != tc.code {
				t.Errorf("exit %d, want %d", got.code, tc.code)
			}
			for _, want := range tc.stdout {
				if !strings.Contains(got.stdout, want) {
					t.Errorf("stdout has no %q: %s", want, got.stdout)
				}
			}
			for _, want := range tc.stderr {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("stderr has no %q: %s", want, got.stderr)
				}
			}
			if strings.Contains(got.stdout+got.stderr, "hunter2") {
				t.Error("a secret is printed")
			}
		})
	}
	plain := service(never)
	plain.Migrate = nil
	if got := execute(t.Context(), plain, nil, "migrate"); got.code != 2 {
		t.Errorf("migrate without a schema: %+v", got)
	}
}

func TestServiceRunsAndStops(t *testing.T) {
	for name, tc := range map[string]struct {
		run  func(cancel context.CancelFunc) func(context.Context, settings, process.Env) error
		code int
		logs []string
	}{
		"clean stop": {
			func(cancel context.CancelFunc) func(context.Context, settings, process.Env) error {
				return func(ctx context.Context, cfg settings, env process.Env) error {
					if !cfg.Stubborn || env.Version == "" || env.Log != env.Tel.Log {
						return fmt.Errorf("given %+v, %+v", cfg, env)
					}
					env.Health.Check("all")(nil)
					cancel()
					<-ctx.Done()
					if _, reasons := env.Health.Ready(); reasons["process"] != "stopping" {
						return fmt.Errorf("ready while it stops: %v", reasons)
					}
					return ctx.Err()
				}
			},
			0,
			[]string{`"msg":"starting"`, `"service":"test"`, `"msg":"ready"`, `"msg":"stopping"`, `"msg":"stopped"`},
		},
		"a failure": {
			func(context.CancelFunc) func(context.Context, settings, process.Env) error {
				return func(context.Context, settings, process.Env) error { return errors.New("schema is behind") }
			},
			1,
			[]string{`"msg":"failed"`, "test: schema is behind"},
		},
		"a panic": {
			func(context.CancelFunc) func(context.Context, settings, process.Env) error {
				return func(context.Context, settings, process.Env) error { panic("oh") }
			},
			1,
			[]string{"test: panic: oh"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			got := execute(ctx, service(tc.run(cancel)), []string{"HODEI_STUBBORN=true", "HODEI_HEALTH_LISTEN=127.0.0.1:0"})
			if got.code != tc.code {
				t.Errorf("exit %d, want %d: %s", got.code, tc.code, got.stderr)
			}
			for _, want := range tc.logs {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("the log has no %q: %s", want, got.stderr)
				}
			}
		})
	}
}

func TestBadHealthAddressEndsTheProcess(t *testing.T) {
	wait := func(ctx context.Context, _ settings, _ process.Env) error { <-ctx.Done(); return nil }
	got := execute(t.Context(), service(wait), []string{"HODEI_HEALTH_LISTEN=256.0.0.1:80"})
	if got.code != 1 || !strings.Contains(got.stderr, "listening for health checks") {
		t.Errorf("%+v", got)
	}
}

func TestSignals(t *testing.T) {
	for name, tc := range map[string]struct {
		env     string
		signals []os.Signal
		code    int
	}{
		"SIGTERM":            {"HODEI_STUBBORN=false", []os.Signal{syscall.SIGTERM}, 0},
		"SIGINT":             {"HODEI_STUBBORN=false", []os.Signal{os.Interrupt}, 0},
		"a second at once":   {"HODEI_STUBBORN=true", []os.Signal{syscall.SIGTERM, os.Interrupt}, 1},
		"stuck beyond grace": {"HODEI_STUBBORN=true", []os.Signal{syscall.SIGTERM}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), "HODEI_TEST_SERVICE=1", tc.env, "HODEI_SHUTDOWN_GRACE=1ms")
			if len(tc.signals) == 2 {
				cmd.Env = append(cmd.Env, "HODEI_SHUTDOWN_GRACE=none")
			}
			logs, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// A signal follows each line that says that the process is ready for it.
			on := []string{"ready", "stopping"}
			lines := bufio.NewScanner(logs)
			sent := 0
			for lines.Scan() {
				var line struct{ Msg string }
				if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
					t.Errorf("not a log line: %s", lines.Text())
				}
				if sent < len(tc.signals) && line.Msg == on[sent] {
					if err := cmd.Process.Signal(tc.signals[sent]); err != nil {
						t.Fatal(err)
					}
					sent++
				}
			}
			err = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != tc.code || ctx.Err() != nil {
				t.Errorf("exit %d (%v), want %d", code, err, tc.code)
			}
		})
	}
}
