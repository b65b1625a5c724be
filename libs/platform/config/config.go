// Package config loads the one configuration struct of a process:
//
//	defaults (the struct passed in)  <-  YAML file  <-  environment
//
// A later source replaces an earlier one, field by field. The struct's tags name
// the sources and its field comments are the manual:
//
//	// PostgresURL is where the truth is. No default.
//	PostgresURL string `yaml:"postgres_url" env:"HODEI_POSTGRES_URL" secret:"true"`
//
// A field tagged secret may also be read from a file, by the key postgres_url_file
// and the variable HODEI_POSTGRES_URL_FILE, and is never printed. Unknown keys are
// errors; a variable that is set to the empty string counts as not set. All
// problems are reported at once, before the process touches anything.
//
// Structs nest; an embedded struct (or one tagged `yaml:",inline"`) lends its keys
// to the struct around it. A struct whose pointer has Validate() error is asked
// once everything is read.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"hodei.dev/libs/domain/fault"
)

// Validator is a configuration, or a part of one, that can say what is wrong with
// it. An *fault.Error with Fields names the keys relative to the struct; any
// other error is reported against the struct as a whole.
type Validator interface{ Validate() error }

// Load fills c, which holds the defaults, from file (none where empty) and from
// environ, which has the form of [os.Environ]. On any problem it returns a
// fault.Invalid error whose Fields name every wrong key or variable and what
// would be right; c is then partly filled and not to be used.
func Load[C any](c *C, file string, environ []string) error {
	l := &loader{vars: variables(environ)}
	root := reflect.ValueOf(c).Elem()
	if root.Kind() != reflect.Struct {
		return fault.New(fault.Internal, "a configuration must be a struct, not %s", root.Type())
	}
	l.file(root, file)
	l.environment(root, "")
	l.validate(root, "")
	if len(l.problems) == 0 {
		return nil
	}
	return &fault.Error{
		Kind: fault.Invalid, Message: "the configuration is not valid", Code: "CONFIG_INVALID",
		Fields: l.problems, Advice: "correct the named keys and variables and start again; --print-config shows what is in effect",
	}
}

func variables(environ []string) map[string]string {
	vars := make(map[string]string, len(environ))
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok && value != "" {
			vars[name] = value
		}
	}
	return vars
}

// loader collects what is wrong while it fills the struct.
type loader struct {
	vars     map[string]string
	name     string // base name of the file, for messages
	dir      string // directory of the file: its secret files are relative to it
	problems fault.Fields
}

func (l *loader) file(root reflect.Value, file string) {
	if file == "" {
		return
	}
	data, err := os.ReadFile(file)
	if err != nil {
		l.problems.Add("--config", "the file cannot be read: %v", err)
		return
	}
	l.name, l.dir = filepath.Base(file), filepath.Dir(file)
	doc, err := parser.ParseBytes(data, 0)
	if err != nil {
		l.problems.Add("--config", "%s is not YAML: %s", l.name, oneLine(err))
		return
	}
	switch {
	case len(doc.Docs) > 1:
		l.problems.Add("--config", "%s holds %d documents, must be one", l.name, len(doc.Docs))
	case len(doc.Docs) == 1 && doc.Docs[0].Body != nil:
		l.assign(doc.Docs[0].Body, root, "")
	}
}

// at is "where" for a message: file and line of a node.
func (l *loader) at(n ast.Node) string {
	return fmt.Sprintf("%s line %d", l.name, n.GetToken().Position.Line)
}

// validate asks every struct from the inside out, so that the whole may rely on
// what its parts report. A method promoted from an embedded struct is asked again
// for the outer one; what it repeats is dropped.
func (l *loader) validate(v reflect.Value, path string) {
	for _, f := range fieldsOf(v.Type()) {
		if fv := v.FieldByIndex(f.index); isSection(fv.Type()) {
			l.validate(fv, join(path, f.key))
		}
	}
	for i := range v.NumField() {
		if sf := v.Type().Field(i); inline(sf) && v.Field(i).CanAddr() {
			l.validate(v.Field(i), path) // it may embed others in turn
		}
	}
	l.validateOne(v, path)
}

func (l *loader) validateOne(v reflect.Value, path string) {
	check, ok := reflect.TypeAssert[Validator](v.Addr())
	if !ok {
		return
	}
	err := check.Validate()
	if err == nil {
		return
	}
	name := path
	if name == "" {
		name = "configuration"
	}
	found := fault.Fields{{Name: name, Problem: err.Error()}}
	if e, ok := errors.AsType[*fault.Error](err); ok && len(e.Fields) > 0 {
		found = nil
		for _, f := range e.Fields {
			found.Add(join(path, f.Name), "%s", f.Problem)
		}
	}
	for _, f := range found {
		if !l.known(f) {
			l.problems = append(l.problems, f)
		}
	}
}

// known says whether the key already has a problem: the one found while reading
// is nearer to the cause than what validation makes of the default left behind.
func (l *loader) known(f fault.Field) bool {
	for _, p := range l.problems {
		if p.Name == f.Name || strings.HasPrefix(p.Name, f.Name+" (") {
			return true
		}
	}
	return false
}

func oneLine(err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	return line
}
