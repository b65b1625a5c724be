package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// maxLine bounds a line of a file; a job itself may have 256 KiB, and JSON may
// escape each of its bytes.
const maxLine = 2 << 20

// parseSpec reads one line of a file of jobs: an object with the field names of the
// API and nothing else. The error names the field.
func parseSpec(line []byte) (*schedulerv1.JobSpec, error) {
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	var object any
	if err := d.Decode(&object); err != nil {
		return nil, fmt.Errorf("not JSON: %s", jsonProblem(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value on the line")
	}
	s := &schedulerv1.JobSpec{}
	if err := checkFields("", object, s.ProtoReflect().Descriptor()); err != nil {
		return nil, err
	}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(line, s); err != nil {
		return nil, errors.New(protoProblem(err))
	}
	return s, nil
}

// checkFields refuses what is not a field of the message, by its whole path.
func checkFields(path string, v any, m protoreflect.MessageDescriptor) error {
	object, ok := v.(map[string]any)
	if !ok {
		if path == "" {
			return errors.New("not an object: a line is a job such as {\"command\":[\"echo\",\"hello\"]}")
		}
		return fmt.Errorf("field %s: an object is wanted", path)
	}
	for _, name := range slices.Sorted(maps.Keys(object)) {
		whole := strings.TrimPrefix(path+"."+name, ".")
		f := m.Fields().ByName(protoreflect.Name(name))
		if f == nil {
			return fmt.Errorf("unknown field %s; there are: %s", whole, strings.Join(fieldNames(m), " "))
		}
		if err := checkField(whole, object[name], f); err != nil {
			return err
		}
	}
	return nil
}

// checkField refuses what has another shape than the field. Of a list or a map that
// is none, the decoder says what it met and not where.
func checkField(whole string, v any, f protoreflect.FieldDescriptor) error {
	if v == nil {
		return nil
	}
	switch {
	case f.IsList():
		if _, ok := v.([]any); !ok {
			return fmt.Errorf("field %s: a list is wanted, such as [\"a\", \"b\"]", whole)
		}
	case f.IsMap():
		if _, ok := v.(map[string]any); !ok {
			return fmt.Errorf("field %s: an object is wanted, such as {\"key\":\"value\"}", whole)
		}
	case f.Message() != nil:
		return checkFields(whole, v, f.Message())
	case f.Kind() == protoreflect.StringKind:
		if _, ok := v.(string); !ok {
			return fmt.Errorf("field %s: a string is wanted, in double quotes", whole)
		}
	}
	return nil
}

func fieldNames(m protoreflect.MessageDescriptor) []string {
	names := make([]string, m.Fields().Len())
	for i := range names {
		names[i] = string(m.Fields().Get(i).Name())
	}
	return names
}

func jsonProblem(err error) string {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return "the line ends too early"
	}
	return err.Error()
}

// position is what protojson puts in front: a line that is always 1 here. Its
// spaces are sometimes not plain ones, on purpose.
var position = regexp.MustCompile(`^proto:[\s\x{00a0}]*(syntax error )?(\(line \d+:\d+\):[\s\x{00a0}]*)?`)

func protoProblem(err error) string { return position.ReplaceAllString(err.Error(), "") }
