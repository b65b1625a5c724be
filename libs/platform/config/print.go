package config

import (
	"encoding"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

// Print writes the configuration in effect as YAML that [Load] reads, except that
// a secret which is set reads "***". c is a struct or a pointer to one.
func Print(w io.Writer, c any) error {
	out, err := yaml.Marshal(shown(reflect.Indirect(reflect.ValueOf(c))))
	if err != nil {
		return fmt.Errorf("printing the configuration: %w", err)
	}
	_, err = w.Write(out)
	return err
}

// shown is v in a form that marshals in the order of the struct, secrets masked.
func shown(v reflect.Value) any {
	if m, ok := reflect.TypeAssert[encoding.TextMarshaler](v); ok && (v.Kind() != reflect.Pointer || !v.IsNil()) {
		text, err := m.MarshalText()
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return shown(v.Elem())
	case reflect.Struct:
		entries := yaml.MapSlice{}
		for _, f := range fieldsOf(v.Type()) {
			fv := v.FieldByIndex(f.index)
			item := yaml.MapItem{Key: f.key, Value: "***"}
			if !f.secret || fv.IsZero() {
				item.Value = shown(fv)
			}
			entries = append(entries, item)
		}
		return entries
	case reflect.Slice, reflect.Array:
		items := make([]any, v.Len())
		for i := range items {
			items[i] = shown(v.Index(i))
		}
		return items
	case reflect.Map:
		entries := yaml.MapSlice{}
		for _, k := range v.MapKeys() {
			entries = append(entries, yaml.MapItem{Key: k.Interface(), Value: shown(v.MapIndex(k))})
		}
		slices.SortFunc(entries, func(a, b yaml.MapItem) int {
			return strings.Compare(fmt.Sprint(a.Key), fmt.Sprint(b.Key))
		})
		return entries
	default:
		return v.Interface()
	}
}
