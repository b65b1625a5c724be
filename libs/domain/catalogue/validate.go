package catalogue

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"

	"hodei.dev/libs/domain/fault"
)

// Validate checks data that somebody wrote by hand against the type's form, more
// strictly than Decode: every field is known, of the right type, and none that
// the type always has is missing. The error is Invalid and names the fields.
func Validate(eventType string, version int, data []byte) error {
	blank, err := Decode(eventType, version, []byte("{}"))
	if err != nil {
		return err
	}
	var wrong fault.Fields
	into := reflect.New(reflect.TypeOf(blank))
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into.Interface()); err != nil {
		addProblem(&wrong, err)
		return wrong.Err("the data of " + eventType)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		wrong.Add("data", "one JSON object, and nothing after it")
	}
	var given map[string]json.RawMessage
	if err := json.Unmarshal(data, &given); err != nil || given == nil {
		wrong.Add("data", "not a JSON object")
	}
	for _, name := range always(into.Elem().Type()) {
		if v, ok := given[name]; !ok && given != nil {
			wrong.Add(name, "missing: %s always has it", eventType)
		} else if ok && string(v) == "null" {
			wrong.Add(name, "is null")
		}
	}
	return wrong.Err("the data of " + eventType)
}

// addProblem names the field that the decoder could not take.
func addProblem(wrong *fault.Fields, err error) {
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && t.Field != "" {
		wrong.Add(t.Field, "a %s where a %s belongs", t.Value, kindOf(t.Type))
		return
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		wrong.Add(strings.Trim(name, `"`), "the type has no such field")
		return
	}
	wrong.Add("data", "%s", strings.TrimPrefix(err.Error(), "json: "))
}

// kindOf says a Go type in the words of JSON.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Slice, reflect.Array:
		return "list"
	case reflect.Map, reflect.Struct:
		return "object"
	default:
		return "number"
	}
}

// always lists the fields of a struct's JSON form that are never left out and
// whose absence is no value of theirs (a list or a map may be null).
func always(t reflect.Type) []string {
	var names []string
	for f := range t.Fields() {
		tag := f.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case f.Anonymous && tag == "" && f.Type.Kind() == reflect.Struct:
			names = append(names, always(f.Type)...)
		case !f.IsExported() || name == "" || name == "-" || strings.Contains(options, "omit"):
		case f.Type.Kind() == reflect.Slice || f.Type.Kind() == reflect.Map || f.Type.Kind() == reflect.Pointer:
		default:
			names = append(names, name)
		}
	}
	return names
}
