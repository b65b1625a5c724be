package catalogue_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/consumer"
	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/transition"
	"hodei.dev/libs/domain/worker"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestDocs keeps the generated docs equal to the data that they are made from.
func TestDocs(t *testing.T) {
	golden(t, "../../../docs/state-machines.md", "# State machines\n\nMade from the transition tables in `libs/domain`; `go test ./catalogue -update` writes it anew.\n"+
		machine("Job", job.Transitions)+machine("Worker", worker.Transitions)+machine("Provider", provider.Transitions)+machine("Circuit", circuit.Transitions)+
		machine("Dead letter", deadletter.Transitions)+machine("Consumer", consumer.Transitions))
	golden(t, "../../../docs/events.md", "# Events\n\nMade from `libs/domain/catalogue`; `go test ./catalogue -update` writes it anew. Exactly one event carries each\n"+
		"transition; all others are notices and change no state. Audit consumes every event.\n\n"+catalogue.Markdown())
	var b strings.Builder
	b.WriteString("# Failure categories and codes\n\nMade from `libs/domain/job`; `go test ./catalogue -update` writes it anew. An infrastructure failure spends the job's\n" +
		"`infrastructure_attempts`, any other its `max_attempts`. \"Retried by default\" is while that budget lasts and the policy's `on` names no other\n" +
		"category of the same kind; \"if named\" is where `on` names it.\n\n| category | code | infrastructure | retried | what to do |\n|---|---|---|---|---|\n")
	for _, c := range job.Causes {
		infra := ""
		if c.Infrastructure {
			infra = "yes"
		}
		b.WriteString("| " + string(c.Category) + " | " + c.Code + " | " + infra + " | " + string(c.Retried) + " | " + c.Advice + " |\n")
	}
	golden(t, "../../../docs/errors.md", b.String())
}

func machine[S ~string](name string, table transition.Table[S]) string {
	return "\n## " + name + "\n\n```mermaid\n" + table.Mermaid() + "```\n\n" + table.Markdown()
}

// TestEveryVersionDecodes: what was ever published must decode for ever. A
// golden file is written once, when its type is new, and never changed.
func TestEveryVersionDecodes(t *testing.T) {
	for _, e := range catalogue.Entries {
		t.Run(e.Type, func(t *testing.T) {
			path := filepath.Join("testdata", "events", e.Type+".v1.json")
			blank, err := catalogue.Decode(e.Type, 1, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			sample := reflect.New(reflect.TypeOf(blank)).Elem()
			fill(sample, "")
			want, err := json.MarshalIndent(sample.Interface(), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, path, string(want)+"\n")

			stored, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			d := json.NewDecoder(bytes.NewReader(stored))
			d.DisallowUnknownFields()
			into := reflect.New(reflect.TypeOf(blank))
			if err := d.Decode(into.Interface()); err != nil {
				t.Fatalf("a field of a published version is gone: %v", err)
			}
			if got := into.Elem().Interface(); !reflect.DeepEqual(got, sample.Interface()) {
				t.Errorf("decoded %+v, want %+v", got, sample.Interface())
			}
		})
	}
}

// TestEarlierFormsDecode: a version may get fields, never lose one. What it was
// before is kept, and decodes to the golden file's fact without the later fields.
func TestEarlierFormsDecode(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "events", "earlier", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, path := range files {
		typ, _, _ := strings.Cut(filepath.Base(path), ".")
		stored, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fact, err := catalogue.Decode(typ, 1, stored)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		again, err := json.MarshalIndent(fact, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if string(again)+"\n" != string(stored) {
			t.Errorf("%s came back as\n%s", path, again)
		}
	}
}

// TestTransitionsNameKnownEvents: the tables and the catalogue agree on which
// types carry transitions.
func TestTransitionsNameKnownEvents(t *testing.T) {
	carriers := map[string]bool{}
	for _, types := range [][]string{eventsOf(job.Transitions), eventsOf(worker.Transitions), eventsOf(provider.Transitions), eventsOf(circuit.Transitions), eventsOf(deadletter.Transitions), eventsOf(consumer.Transitions)} {
		for _, typ := range types {
			carriers[typ] = true
		}
	}
	for _, e := range catalogue.Entries {
		if carriers[e.Type] != (e.Role == catalogue.Transition) {
			t.Errorf("%s: role %s, in a transition table: %v", e.Type, e.Role, carriers[e.Type])
		}
		delete(carriers, e.Type)
	}
	for typ := range carriers {
		t.Errorf("a table names %s, which the catalogue does not have", typ)
	}
}

func TestCatalogueIsOneEntryAType(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range catalogue.Entries {
		if seen[e.Type] {
			t.Errorf("%s stands twice", e.Type)
		}
		seen[e.Type] = true
		if len(e.Producers) == 0 || e.Meaning == "" || len(e.Aggregates) == 0 {
			t.Errorf("%s: incomplete", e.Type)
		}
	}
	if _, err := catalogue.Decode("NoSuchEvent", 1, nil); err == nil {
		t.Error("an unknown type decodes")
	}
	if _, err := catalogue.Decode("JobCreated", 2, []byte("{}")); err == nil {
		t.Error("an unknown version decodes")
	}
	if !slices.Contains(catalogue.Consumed(catalogue.Dispatcher), "JobQueued") {
		t.Error("the dispatcher does not consume JobQueued")
	}
}

func eventsOf[S ~string](t transition.Table[S]) []string {
	var out []string
	for _, r := range t.Rules {
		out = append(out, r.Event)
	}
	return out
}

// fill gives every exported field a value that is not zero.
func fill(v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 678000000, time.UTC)))
		return
	case json.RawMessage:
		v.Set(reflect.ValueOf(json.RawMessage(`"raw"`)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(name)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(name)))
		if v.Type().Name() == "Duration" {
			v.SetInt(int64(90 * time.Second))
		}
	case reflect.Float64:
		v.SetFloat(float64(len(name)) / 4)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte("bytes"))
			return
		}
		fill(v.Index(0), name)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), reflect.ValueOf("value"))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), strings.Split(v.Type().Field(i).Tag.Get("json"), ",")[0])
			}
		}
	default:
		panic("fill: " + v.Kind().String())
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run `go test ./catalogue -update` in libs/domain", err)
	}
	if got != string(want) {
		t.Errorf("%s is not what the data says: run `go test ./catalogue -update` in libs/domain and read the difference", path)
	}
}
