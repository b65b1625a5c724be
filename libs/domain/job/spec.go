package job

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/unit"
)

// Limits and defaults of a spec (R1.5, R5.2, R7.0).
const (
	// MaxSpecBytes bounds the whole spec, script and stdin included.
	MaxSpecBytes = 256 << 10
	// DefaultTimeout is how long one attempt may run.
	DefaultTimeout = time.Hour
	// DefaultQueueTimeout is how long a job may wait in all before it first starts.
	DefaultQueueTimeout = 24 * time.Hour
	// MaxTimeout bounds every duration of a spec.
	MaxTimeout = 30 * 24 * time.Hour
	// DefaultNamespace is used when a spec names none.
	DefaultNamespace = "default"
	// MaxDescriptionBytes, MaxTags and MaxTagChars (of each tag) bound what is for people.
	MaxDescriptionBytes = 4 << 10
	MaxTags             = 64
	MaxTagChars         = 128
)

// Script is what an interpreter is given instead of a command.
type Script struct {
	// Interpreter is a program, by name or path, that takes the script's file as its argument.
	Interpreter string `json:"interpreter"`
	Content     string `json:"content"`
}

// Resources are what a job reserves; 0 reserves nothing.
type Resources struct {
	// CPUMillis are thousandths of a core.
	CPUMillis   int64 `json:"cpu_millis,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
}

// Placement says where a job may run.
type Placement struct {
	// Provider is a provider's id or name; empty = any.
	Provider string `json:"provider,omitempty"`
	// PreferredProvider is the id or name of the provider that is taken while it fits and
	// has room or an idle worker; else any other that fits is. Empty = none is preferred.
	PreferredProvider string `json:"preferred_provider,omitempty"`
	// RequiredLabels must all be labels of the provider, with these values.
	RequiredLabels map[string]string `json:"required_labels,omitempty"`
}

// Spec is what the client asked for. It never changes after JobCreated.
type Spec struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	Command   []string          `json:"command,omitempty"`
	Script    *Script           `json:"script,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	// Cwd is an absolute path on the worker; empty = a private directory that is removed afterwards.
	Cwd string `json:"cwd,omitempty"`
	// Stdin is fed to the command and then closed; nil closes it at once.
	Stdin       []byte            `json:"stdin,omitempty"`
	Resources   Resources         `json:"resources,omitzero"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Priority: higher runs first, -1000 to 1000, default 0.
	Priority     int           `json:"priority,omitempty"`
	Timeout      unit.Duration `json:"timeout"`
	QueueTimeout unit.Duration `json:"queue_timeout"`
	Retry        Retry         `json:"retry"`
	Placement    Placement     `json:"placement,omitzero"`
	// Description and Tags are for people; nothing depends on them.
	Description string   `json:"description,omitempty"`
	Tags        []string `json:"tags,omitempty"`
}

// WithDefaults returns s with every default in its place.
func (s Spec) WithDefaults() Spec {
	if s.Namespace == "" {
		s.Namespace = DefaultNamespace
	}
	if s.Name == "" {
		s.Name = s.defaultName()
	}
	if s.Timeout == 0 {
		s.Timeout = unit.Duration(DefaultTimeout)
	}
	if s.QueueTimeout == 0 {
		s.QueueTimeout = unit.Duration(DefaultQueueTimeout)
	}
	s.Retry = s.Retry.withDefaults()
	if len(s.Placement.RequiredLabels) == 0 {
		s.Placement.RequiredLabels = nil // so that no placement has one form
	}
	return s
}

// defaultName is the program's own name, so that lists can be read.
func (s Spec) defaultName() string {
	name := "job"
	switch {
	case len(s.Command) > 0:
		name = path.Base(s.Command[0])
	case s.Script != nil:
		name = path.Base(s.Script.Interpreter)
	}
	if nameRE.MatchString(name) {
		return name
	}
	return "job"
}

var (
	nameRE  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$`)
	labelRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	keyRE   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?$`)
	envRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// ValidNamespace tells whether ns is a DNS label.
func ValidNamespace(ns string) bool { return labelRE.MatchString(ns) }

// Validate returns an Invalid error that names every wrong field of s, which has its defaults.
func (s Spec) Validate() error {
	var f fault.Fields
	s.validateNames(&f)
	s.validateWork(&f)
	s.validateLimits(&f)
	if size, err := json.Marshal(s); err == nil && len(size) > MaxSpecBytes {
		f.Add("spec", "%d bytes as JSON (stdin in base64); at most %d: put large input where the job can fetch it", len(size), MaxSpecBytes)
	}
	return f.Err("the job")
}

func (s Spec) validateNames(f *fault.Fields) {
	if !nameRE.MatchString(s.Name) {
		f.Add("name", "%q: 1 to 128 letters, digits, '.', '_', '/' or '-', beginning and ending with a letter or digit", clip(s.Name))
	}
	if !ValidNamespace(s.Namespace) {
		f.Add("namespace", "%q: a DNS label: 1 to 63 lower-case letters, digits or '-'", clip(s.Namespace))
	}
	CheckLabels(f, "labels", s.Labels)
	checkText(f, "placement.provider", s.Placement.Provider)
	checkText(f, "placement.preferred_provider", s.Placement.PreferredProvider)
	CheckLabels(f, "placement.required_labels", s.Placement.RequiredLabels)
	for _, k := range slices.Sorted(maps.Keys(s.Annotations)) {
		v := s.Annotations[k]
		if !keyRE.MatchString(k) {
			f.Add("annotations", "key %q: 1 to 128 letters, digits, '.', '_', '/' or '-'", clip(k))
		}
		checkText(f, "annotations."+k, v)
	}
	if n := len(s.Description); n > MaxDescriptionBytes {
		f.Add("description", "%d bytes; at most %d", n, MaxDescriptionBytes)
	}
	checkText(f, "description", s.Description)
	checkTags(f, s.Tags)
}

func checkTags(f *fault.Fields, tags []string) {
	if n := len(tags); n > MaxTags {
		f.Add("tags", "%d; at most %d", n, MaxTags)
		return
	}
	first := make(map[string]int, len(tags))
	for i, tag := range tags {
		name := fmt.Sprintf("tags[%d]", i)
		unprintable := strings.ContainsFunc(tag, func(r rune) bool { return !unicode.IsPrint(r) })
		if n := utf8.RuneCountInString(tag); n < 1 || n > MaxTagChars || !utf8.ValidString(tag) || unprintable {
			f.Add(name, "%q: 1 to %d printable characters", clip(tag), MaxTagChars)
		}
		if before, twice := first[tag]; twice {
			f.Add(name, "%q is tags[%d] already: give each tag once", clip(tag), before)
		} else {
			first[tag] = i
		}
	}
}

// CheckLabels adds what is wrong with labels to f; name is the field that has them.
func CheckLabels(f *fault.Fields, name string, labels map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		if !keyRE.MatchString(k) {
			f.Add(name, "key %q: 1 to 128 letters, digits, '.', '_', '/' or '-'", clip(k))
		}
		if len(v) > 256 {
			f.Add(name+"."+k, "%d bytes; at most 256", len(v))
		}
		checkText(f, name+"."+k, v)
	}
}

func (s Spec) validateWork(f *fault.Fields) {
	switch {
	case len(s.Command) == 0 && s.Script == nil:
		f.Add("command", "missing: give a command (argv) or a script")
	case len(s.Command) > 0 && s.Script != nil:
		f.Add("script", "a job has a command or a script, not both")
	case len(s.Command) > 0 && s.Command[0] == "":
		f.Add("command", "the program's name is empty")
	}
	for i, a := range s.Command {
		checkText(f, fmt.Sprintf("command[%d]", i), a)
	}
	if s.Script != nil {
		if s.Script.Interpreter == "" {
			f.Add("script.interpreter", "missing: name the program that reads the script, such as sh or python3")
		}
		if s.Script.Content == "" {
			f.Add("script.content", "the script is empty")
		}
		checkText(f, "script.interpreter", s.Script.Interpreter)
		checkText(f, "script.content", s.Script.Content)
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		v := s.Env[k]
		if !envRE.MatchString(k) {
			f.Add("env", "name %q: letters, digits and '_', not beginning with a digit", clip(k))
		}
		if strings.HasPrefix(k, "HODEI_") {
			f.Add("env."+k, "names that begin with HODEI_ are the platform's own")
		}
		checkText(f, "env."+k, v)
	}
	if s.Cwd != "" && !path.IsAbs(s.Cwd) {
		f.Add("cwd", "%q: give an absolute path", clip(s.Cwd))
	}
	checkText(f, "cwd", s.Cwd)
}

func (s Spec) validateLimits(f *fault.Fields) {
	if s.Priority < -1000 || s.Priority > 1000 {
		f.Add("priority", "%d: from -1000 to 1000, higher runs first", s.Priority)
	}
	checkDuration(f, "timeout", s.Timeout)
	checkDuration(f, "queue_timeout", s.QueueTimeout)
	s.Retry.validate(f)
	if s.Resources.CPUMillis < 0 {
		f.Add("resources.cpu_millis", "%d: not negative", s.Resources.CPUMillis)
	}
	if s.Resources.MemoryBytes < 0 {
		f.Add("resources.memory_bytes", "%d: not negative", s.Resources.MemoryBytes)
	}
	if m := s.Resources.MemoryBytes; m > 0 && m < 1<<20 {
		f.Add("resources.memory_bytes", "%d: at least 1 MiB (1048576), or 0 to reserve nothing", m)
	}
}

func checkDuration(f *fault.Fields, name string, d unit.Duration) {
	if d <= 0 || d.D() > MaxTimeout {
		f.Add(name, "%s: more than 0 and at most %s", d, MaxTimeout)
	}
}

// checkText refuses what Postgres's text cannot hold.
func checkText(f *fault.Fields, name, v string) {
	if !utf8.ValidString(v) {
		f.Add(name, "not valid UTF-8")
	}
	if strings.ContainsRune(v, 0) {
		f.Add(name, "contains a NUL byte")
	}
}

func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "?") + "..."
	}
	return s
}
