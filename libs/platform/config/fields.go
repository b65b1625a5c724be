package config

import (
	"encoding"
	"reflect"
	"strings"
)

// field is one key of a struct, embedded structs flattened.
type field struct {
	key    string // yaml key
	env    string // variable, "" = none
	secret bool
	index  []int
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// fieldsOf lists the keys of a struct in the order of its definition.
func fieldsOf(t reflect.Type) []field {
	var all []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if inline(sf) {
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{i}, f.index...)
				all = append(all, f)
			}
			continue
		}
		key, _, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if !sf.IsExported() || key == "-" {
			continue
		}
		if key == "" {
			key = strings.ToLower(sf.Name)
		}
		all = append(all, field{key: key, env: sf.Tag.Get("env"), secret: sf.Tag.Get("secret") == "true", index: []int{i}})
	}
	return all
}

// inline says whether a struct lends its keys to the struct around it.
func inline(sf reflect.StructField) bool {
	if sf.Type.Kind() != reflect.Struct || !sf.IsExported() {
		return false
	}
	name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
	return name == "" && (sf.Anonymous || opts == "inline")
}

// isSection says whether a type has keys of its own, rather than being one value.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(textUnmarshaler)
}

// lookup finds a key, or the field whose secret file the key names.
func lookup(fields []field, key string) (f field, file, ok bool) {
	for _, f := range fields {
		if f.key == key {
			return f, false, true
		}
		if f.secret && f.key+"_file" == key {
			return f, true, true
		}
	}
	return field{}, false, false
}

// nearest is the key that was probably meant, "" where none is close.
func nearest(fields []field, key string) string {
	best, at := "", 3
	for _, f := range fields {
		if d := distance(key, f.key); d < at {
			best, at = f.key, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
