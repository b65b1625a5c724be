package config

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// assign sets v from a node of the file and reports what does not fit.
func (l *loader) assign(n ast.Node, v reflect.Value, path string) {
	if _, null := n.(*ast.NullNode); null {
		return // "key:" without a value keeps the default
	}
	t := v.Type()
	switch {
	case isSection(t):
		l.section(n, v, path)
	case t.Kind() == reflect.Pointer: // NodeToValue leaves a nil one nil, and says nothing
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		l.assign(n, v.Elem(), path)
	case t.Kind() == reflect.Slice && isSection(t.Elem()):
		l.list(n, v, path)
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && isSection(t.Elem()):
		l.table(n, v, path)
	default:
		if err := yaml.NodeToValue(n, v.Addr().Interface(), yaml.Strict()); err != nil {
			l.problems.Add(path, "%s: %s is not %s: %s", l.at(n), short(n.String()), describe(t), oneLine(err))
		}
	}
}

// section sets a struct from a mapping.
func (l *loader) section(n ast.Node, v reflect.Value, path string) {
	entries, ok := l.entries(n, path)
	if !ok {
		return
	}
	fields := fieldsOf(v.Type())
	for _, e := range entries {
		key := e.Key.GetToken().Value
		full := join(path, key)
		f, file, ok := lookup(fields, key)
		switch {
		case !ok:
			hint := ""
			if near := nearest(fields, key); near != "" {
				hint = fmt.Sprintf("; did you mean %q?", near)
			}
			l.problems.Add(full, "%s: unknown key%s", l.at(e.Key), hint)
		case file:
			l.secretKey(e.Value, v.FieldByIndex(f.index), full, has(entries, f.key))
		case f.secret:
			if err := yaml.NodeToValue(e.Value, v.FieldByIndex(f.index).Addr().Interface()); err != nil {
				l.problems.Add(full, "%s: must be %s", l.at(e.Value), describe(v.FieldByIndex(f.index).Type()))
			}
		default:
			l.assign(e.Value, v.FieldByIndex(f.index), full)
		}
	}
}

func has(entries []*ast.MappingValueNode, key string) bool {
	for _, e := range entries {
		if e.Key.GetToken().Value == key {
			return true
		}
	}
	return false
}

// secretKey sets a secret from the file that the key names.
func (l *loader) secretKey(n ast.Node, v reflect.Value, path string, both bool) {
	if both {
		l.problems.Add(path, "%s: give the value or its file, not both", l.at(n))
		return
	}
	var file string
	if err := yaml.NodeToValue(n, &file); err != nil || file == "" {
		l.problems.Add(path, "%s: must be the path of a file", l.at(n))
		return
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(l.dir, file)
	}
	l.secret(v, path, file)
}

// secret sets v to what the file holds, without the newline that editors add.
func (l *loader) secret(v reflect.Value, name, file string) {
	data, err := os.ReadFile(file)
	value := strings.TrimRight(string(data), "\r\n")
	switch {
	case v.Kind() != reflect.String:
		l.problems.Add(name, "only a string can be read from a file")
	case err != nil:
		l.problems.Add(name, "the secret's file cannot be read: %v", err)
	case value == "":
		l.problems.Add(name, "the secret's file %s is empty", file)
	default:
		v.SetString(value)
	}
}

// list replaces a slice of structs.
func (l *loader) list(n ast.Node, v reflect.Value, path string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		l.problems.Add(path, "%s: must be a list", l.at(n))
		return
	}
	items := reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values))
	for i, item := range seq.Values {
		l.assign(item, items.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(items)
}

// table sets entries of a map of structs; entries that are not named stay.
func (l *loader) table(n ast.Node, v reflect.Value, path string) {
	entries, ok := l.entries(n, path)
	if !ok {
		return
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	for _, e := range entries {
		key := e.Key.GetToken().Value
		name := reflect.ValueOf(key).Convert(v.Type().Key())
		item := reflect.New(v.Type().Elem()).Elem()
		if old := v.MapIndex(name); old.IsValid() {
			item.Set(old)
		}
		l.assign(e.Value, item, join(path, key))
		v.SetMapIndex(name, item)
	}
}

func (l *loader) entries(n ast.Node, path string) ([]*ast.MappingValueNode, bool) {
	switch m := n.(type) {
	case *ast.MappingNode:
		return m.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	}
	name := path
	if name == "" {
		name = "--config"
	}
	l.problems.Add(name, "%s: must be a mapping of keys to values", l.at(n))
	return nil, false
}

// environment sets the fields that a variable names, in every nested struct.
func (l *loader) environment(v reflect.Value, path string) {
	for _, f := range fieldsOf(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if isSection(fv.Type()) {
			l.environment(fv, join(path, f.key))
		}
		if f.env == "" {
			continue
		}
		name := fmt.Sprintf("%s (%s)", join(path, f.key), f.env)
		value, set := l.vars[f.env]
		file, byFile := l.vars[f.env+"_FILE"]
		switch byFile = byFile && f.secret; {
		case set && byFile:
			l.problems.Add(name, "set %s or %s_FILE, not both", f.env, f.env)
		case byFile:
			l.secret(fv, fmt.Sprintf("%s (%s_FILE)", join(path, f.key), f.env), file)
		case set:
			if err := parse(fv, value); err != nil {
				if f.secret {
					l.problems.Add(name, "must be %s", describe(fv.Type()))
				} else {
					l.problems.Add(name, "%q is not %s: %v", value, describe(fv.Type()), err)
				}
			}
		}
	}
}

// parse sets v from the text of a variable. A list of strings is separated by commas.
func parse(v reflect.Value, text string) error {
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		return u.UnmarshalText([]byte(text))
	}
	if v.Kind() == reflect.String {
		v.SetString(text)
		return nil
	}
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String {
		parts := reflect.MakeSlice(v.Type(), 0, 4)
		for part := range strings.SplitSeq(text, ",") {
			parts = reflect.Append(parts, reflect.ValueOf(strings.TrimSpace(part)).Convert(v.Type().Elem()))
		}
		v.Set(parts)
		return nil
	}
	if err := yaml.UnmarshalWithOptions([]byte(text), v.Addr().Interface(), yaml.Strict()); err != nil {
		return errors.New(oneLine(err)) // its text alone: the rest is a picture of the source
	}
	return nil
}

// describe is what a value of a type looks like, in words.
func describe(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[Duration]():
		return `a duration such as "30s"`
	case t == reflect.TypeFor[Limit]():
		return `a whole number of zero or more, or "none"`
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return "a valid " + strings.ToLower(t.Name())
	}
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number of zero or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map:
		return "a mapping"
	default:
		return "a " + t.String()
	}
}

// short keeps a message readable where a whole block is in the wrong place.
func short(text string) string {
	text, _, cut := strings.Cut(strings.TrimSpace(text), "\n")
	if cut || len(text) > 60 {
		text = text[:min(len(text), 60)] + "..."
	}
	return strconv.Quote(text)
}
