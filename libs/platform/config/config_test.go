package config_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/config"
)

type service struct {
	config.Common
	// Retry is a section.
	Retry     retry             `yaml:"retry"`
	Providers []provider        `yaml:"providers"`
	Deadlines map[string]limit  `yaml:"deadlines"`
	Names     []string          `yaml:"names" env:"HODEI_NAMES"`
	Labels    map[string]string `yaml:"labels"`
	Risky     bool              `yaml:"risky" env:"HODEI_RISKY"`
}

type retry struct {
	MaxAttempts int             `yaml:"max_attempts" env:"HODEI_RETRY_MAX_ATTEMPTS"`
	Backoff     config.Duration `yaml:"backoff"`
}

type provider struct {
	Name  string `yaml:"name"`
	Token string `yaml:"token" secret:"true"`
}

type limit struct {
	After config.Duration `yaml:"after"`
}

func (r *retry) Validate() error {
	var wrong fault.Fields
	if r.MaxAttempts < 1 {
		wrong.Add("max_attempts", "must be 1 or more")
	}
	return wrong.Err("retry")
}

func (s *service) Validate() error {
	return s.Require("postgres_url").Err("the scheduler's configuration")
}

func defaults() service {
	return service{
		Common: config.DefaultCommon(), Retry: retry{MaxAttempts: 3, Backoff: config.Duration(time.Second)},
		Deadlines: map[string]limit{"ASSIGNED": {config.Duration(30 * time.Second)}, "PENDING": {config.None}},
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPrecedence(t *testing.T) {
	file := write(t, "c.yaml", `
postgres_url: postgres://file
log_level: debug
listen: "127.0.0.1:7433"
retry: {max_attempts: 5}
deadlines:
  ASSIGNED: {after: none}
providers:
  - name: local
    token: s3cret
labels: {a: b}
`)
	c := defaults()
	err := config.Load(&c, file, []string{
		"HODEI_POSTGRES_URL=postgres://env=x", "HODEI_SHUTDOWN_GRACE=5s", "HODEI_LISTEN=", "HODEI_NAMES=a, b",
		"HODEI_RISKY=true", "HODEI_SOMETHING_ELSE=1",
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, ok := range map[string]bool{
		"environment beats file":     c.PostgresURL == "postgres://env=x",
		"file beats default":         c.LogLevel == "debug" && c.Retry.MaxAttempts == 5,
		"default stays":              c.LogFormat == "json" && c.Retry.Backoff.Std() == time.Second,
		"empty variable is not set":  c.Listen == "127.0.0.1:7433",
		"duration from environment":  c.ShutdownGrace.Std() == 5*time.Second,
		"map entries merge":          c.Deadlines["ASSIGNED"].After.IsNone() && c.Deadlines["PENDING"].After.IsNone(),
		"list of structs":            len(c.Providers) == 1 && c.Providers[0].Token == "s3cret",
		"list from environment":      len(c.Names) == 2 && c.Names[1] == "b",
		"bool from environment":      c.Risky,
		"plain map":                  c.Labels["a"] == "b",
		"common part is reachable":   c.CommonConfig() == &c.Common,
		"defaults are valid without": config.Load(&service{Common: config.DefaultCommon(), Retry: retry{MaxAttempts: 1}}, "", []string{"HODEI_POSTGRES_URL=x"}) == nil,
	} {
		if !ok {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	file := write(t, "scheduler.yaml", `listen: nonsense
postgre_url: x
retry:
  max_attempts: many
  backof: 1s
  backoff: -5s
providers: {name: x}
deadlines:
  ASSIGNED: {befor: 1s}
zzz_unknown: 1
`)
	c := defaults()
	err := config.Load(&c, file, []string{"HODEI_SHUTDOWN_GRACE=soon", "HODEI_LOG_LEVEL=loud", "HODEI_RISKY=maybe"})
	if !errors.Is(err, fault.Invalid) {
		t.Fatalf("got %v", err)
	}
	var e *fault.Error
	errors.As(err, &e)
	got := map[string]string{}
	for _, f := range e.Fields {
		if _, twice := got[f.Name]; twice {
			t.Errorf("%s is reported twice", f.Name)
		}
		got[f.Name] = f.Problem
	}
	want := map[string]string{
		"listen":                                `"host:port"`,
		"postgre_url":                           `scheduler.yaml line 2: unknown key; did you mean "postgres_url"?`,
		"retry.max_attempts":                    `scheduler.yaml line 4: "many" is not a whole number`,
		"retry.backof":                          `line 5: unknown key; did you mean "backoff"?`,
		"retry.backoff":                         "is negative",
		"providers":                             "line 7: must be a list",
		"deadlines.ASSIGNED.befor":              "line 9: unknown key",
		"zzz_unknown":                           "line 10: unknown key",
		"shutdown_grace (HODEI_SHUTDOWN_GRACE)": `"soon" is not a duration such as "30s"`,
		"risky (HODEI_RISKY)":                   `"maybe" is not true or false`,
		"log_level":                             "debug, info, warn or error",
		"postgres_url":                          "HODEI_POSTGRES_URL",
	}
	for name, problem := range want {
		if !strings.Contains(got[name], problem) {
			t.Errorf("%s: %q does not say %q", name, got[name], problem)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d:\n%v", len(got), len(want), err)
	}
}

func TestUnreadableFiles(t *testing.T) {
	for name, file := range map[string]string{
		"absent":        filepath.Join(t.TempDir(), "none.yaml"),
		"not yaml":      write(t, "a.yaml", "a: [1\nb: }"),
		"not a mapping": write(t, "a.yaml", "- a\n- b\n"),
		"two documents": write(t, "a.yaml", "log_level: info\n---\nlog_level: warn\n"),
		"a key twice":   write(t, "a.yaml", "log_level: info\nlog_level: warn\n"),
	} {
		t.Run(name, func(t *testing.T) {
			c := defaults()
			err := config.Load(&c, file, []string{"HODEI_POSTGRES_URL=x"})
			if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "--config") {
				t.Fatalf("got %v", err)
			}
		})
	}
	c := defaults()
	if err := config.Load(&c, write(t, "empty.yaml", "# nothing\n"), []string{"HODEI_POSTGRES_URL=x"}); err != nil {
		t.Errorf("an empty file is refused: %v", err)
	}
}

func TestSecretFiles(t *testing.T) {
	secret := write(t, "pg", "postgres://from-file\n")
	empty := write(t, "empty", "\n")
	for name, tc := range map[string]struct {
		yaml string
		env  []string
		url  string
		want string
	}{
		"key, relative":      {yaml: "postgres_url_file: pg", url: "postgres://relative"},
		"variable":           {env: []string{"HODEI_POSTGRES_URL_FILE=" + secret}, url: "postgres://from-file"},
		"variable over key":  {yaml: "postgres_url: x", env: []string{"HODEI_POSTGRES_URL_FILE=" + secret}, url: "postgres://from-file"},
		"variable over file": {yaml: "postgres_url_file: pg", env: []string{"HODEI_POSTGRES_URL=y"}, url: "y"},
		"both keys":          {yaml: "postgres_url: x\npostgres_url_file: pg", want: "not both"},
		"both variables":     {env: []string{"HODEI_POSTGRES_URL=y", "HODEI_POSTGRES_URL_FILE=" + secret}, want: "not both"},
		"absent":             {env: []string{"HODEI_POSTGRES_URL_FILE=/nonexistent/pg"}, want: "postgres_url (HODEI_POSTGRES_URL_FILE): the secret's file cannot be read"},
		"empty":              {env: []string{"HODEI_POSTGRES_URL_FILE=" + empty}, want: "is empty"},
		"not a secret":       {yaml: "listen_file: pg", want: "unknown key"},
		"not a path":         {yaml: "postgres_url_file: [1]", want: "path of a file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := write(t, "c.yaml", tc.yaml)
			if err := os.WriteFile(filepath.Join(filepath.Dir(file), "pg"), []byte("postgres://relative"), 0o600); err != nil {
				t.Fatal(err)
			}
			c := defaults()
			err := config.Load(&c, file, tc.env)
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("got %v, want %q", err, tc.want)
			case tc.want == "" && c.PostgresURL != tc.url:
				t.Fatalf("got %q", c.PostgresURL)
			}
		})
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	type odd struct {
		Port int `yaml:"port" env:"HODEI_PORT" secret:"true"`
	}
	for _, err := range []error{
		config.Load(&odd{}, "", []string{"HODEI_PORT=hunter2"}),
		config.Load(&odd{}, write(t, "c.yaml", "port: hunter2"), nil),
	} {
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Fatalf("got %v", err)
		}
	}
}

func TestPrint(t *testing.T) {
	c := defaults()
	c.PostgresURL = "postgres://u:hunter2@db"
	c.Providers = []provider{{Name: "local", Token: "hunter2"}, {Name: "none"}}
	var out bytes.Buffer
	if err := config.Print(&out, &c); err != nil {
		t.Fatal(err)
	}
	want := `postgres_url: "***"
nats_url: ""
listen: ""
insecure: false
health_listen: ""
log_level: info
log_format: json
shutdown_grace: 20s
retry:
  max_attempts: 3
  backoff: 1s
providers:
- name: local
  token: "***"
- name: none
  token: ""
deadlines:
  ASSIGNED:
    after: 30s
  PENDING:
    after: none
names: []
labels: {}
risky: false
`
	if out.String() != want {
		t.Fatalf("got\n%s\nwant\n%s", out.String(), want)
	}
	again := defaults()
	if err := config.Load(&again, write(t, "printed.yaml", out.String()), nil); err != nil {
		t.Fatalf("what was printed does not load: %v", err)
	}
}

func TestDuration(t *testing.T) {
	for text, ok := range map[string]bool{"250ms": true, "0s": true, "none": true, "1h30m": true, "-1s": false, "30": false, "": false, "None": false} {
		var d config.Duration
		if err := d.UnmarshalText([]byte(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLimit(t *testing.T) {
	for text, want := range map[string]config.Limit{"0": 0, "1000000": 1000000, "none": config.Unlimited, "-1": -1, "": -1, "1.5": -1, "None": -1} {
		l := config.Limit(-1)
		if err := l.UnmarshalText([]byte(text)); l != want || (err == nil) != (want >= 0) {
			t.Errorf("%q: %s, %v", text, l, err)
		}
	}
	var c struct {
		A, B config.Limit
	}
	if err := config.Load(&c, write(t, "limits.yaml", "a: none\nb: 7\n"), nil); err != nil || c.A != config.Unlimited || c.B != 7 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDoorsBindToLoopbackUnlessToldOtherwise(t *testing.T) {
	for addr, open := range map[string]bool{
		"127.0.0.1:1": false, "localhost:1": false, "[::1]:1": false, "unix:///a": false,
		"0.0.0.0:1": true, ":1": true, "10.1.2.3:1": true, "host:1": true,
	} {
		c := config.DefaultCommon()
		c.Listen = addr
		if err := c.Validate(); (err != nil) != open {
			t.Errorf("%s: %v", addr, err)
		}
		c.Insecure = true
		if err := c.Validate(); err != nil {
			t.Errorf("%s with insecure: %v", addr, err)
		}
	}
}

// Middle embeds Common and hides its Validate; outer embeds that, as services do.
type Middle struct {
	config.Common `yaml:",inline"`
}

func (Middle) Validate() error { return nil }

type outer struct {
	Middle `yaml:",inline"`
}

func TestWhatIsEmbeddedTwiceIsAskedToo(t *testing.T) {
	c := outer{Middle{config.DefaultCommon()}}
	err := config.Load(&c, "", []string{"HODEI_LISTEN=0.0.0.0:1", "HODEI_LOG_LEVEL=loud"})
	if err == nil || !strings.Contains(err.Error(), "log_level") || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("%v", err)
	}
}

type optional struct {
	Jobs  *int      `yaml:"jobs"`
	Share *retry    `yaml:"share"`
	List  []several `yaml:"list"`
}

type several struct {
	Jobs *int `yaml:"jobs"`
}

// A pointer tells a zero that was written from a key that is not there.
func TestAPointerHoldsWhatTheFileSays(t *testing.T) {
	var c optional
	file := write(t, "c.yaml", "jobs: 0\nlist:\n  - jobs: 0\n  - jobs: 3\n  - jobs:\n  - {}\n")
	if err := config.Load(&c, file, nil); err != nil {
		t.Fatal(err)
	}
	if c.Jobs == nil || *c.Jobs != 0 || c.Share != nil || len(c.List) != 4 {
		t.Fatalf("%+v", c)
	}
	if a, b := c.List[0].Jobs, c.List[1].Jobs; a == nil || *a != 0 || b == nil || *b != 3 {
		t.Errorf("of the list: %v, %v", a, b)
	}
	if c.List[2].Jobs != nil || c.List[3].Jobs != nil {
		t.Errorf("a key without a value, or no key, is not nil: %v, %v", c.List[2].Jobs, c.List[3].Jobs)
	}
	err := config.Load(&c, write(t, "wrong.yaml", "jobs: many\n"), nil)
	if err == nil || !strings.Contains(err.Error(), "jobs") {
		t.Errorf("no number: %v", err)
	}
}
