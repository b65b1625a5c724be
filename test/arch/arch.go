// Package arch keeps the shape of the repository: which package may import
// which, as a table with the reason for each rule (rules.go), and a few plain
// facts about names, comments and sizes. Its tests read the sources of every
// module, for every operating system, whether they compile or not.
//
// It is one of three locks: `internal/` is the compiler's, the module
// boundaries are checked by building each module alone (make modules-check).
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// prefix starts the import path of every package of this repository.
const prefix = "hodei.dev/"

// file is one Go file of the repository.
type file struct {
	// name is its path below the root, with slashes.
	name string
	// test says that it is a _test.go file.
	test bool
	// generated says that it says so itself.
	generated bool
	// documented says that it carries a package comment.
	documented bool
	// pkg is the name in its package clause.
	pkg string
	// imports are the import paths as written.
	imports []string
	lines   int
}

// dir is the folder of the file below the root: of a package, what follows the prefix.
func (f file) dir() string { return path.Dir(f.name) }

// root finds the folder of go.work above the working directory.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("finding the repository: no go.work in or above the working directory")
		}
		dir = up
	}
}

// load reads the Go files of the workspace. Tools and hidden folders are no part of it.
func load(root string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (d.Name()[0] == '.' || d.Name()[0] == '_' || d.Name() == "testdata") || rel == "tools" || rel == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		f, err := parse(p, rel)
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the sources: %w", err)
	}
	return files, nil
}

func parse(name, rel string) (file, error) {
	src, err := os.ReadFile(name)
	if err != nil {
		return file{}, err
	}
	tree, err := parser.ParseFile(token.NewFileSet(), rel, src, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return file{}, err
	}
	f := file{
		name:       rel,
		test:       strings.HasSuffix(rel, "_test.go"),
		generated:  ast.IsGenerated(tree),
		documented: tree.Doc != nil && strings.TrimSpace(tree.Doc.Text()) != "",
		pkg:        tree.Name.Name,
		lines:      strings.Count(string(src), "\n"),
	}
	for _, i := range tree.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports = append(f.imports, p)
	}
	return f, nil
}

// imports checks every import of every file against the table.
func imports(table []rule, files []file) []string {
	var broken []string
	for _, f := range files {
		for _, r := range table {
			if !r.speaksOf(f) {
				continue
			}
			for _, i := range f.imports {
				if !r.permits(f, i) {
					broken = append(broken, fmt.Sprintf("%s imports %s\n\t%s: %s", f.name, i, r.from, r.why))
				}
			}
		}
	}
	return broken
}

// maxLines is the size at which a file is surely more than one thing (the aim is 400).
const maxLines = 1000

// vague are folder and package names that say nothing about what is in them.
var vague = []string{"util", "utils", "common", "helper", "helpers", "model", "models", "misc"}

// facts checks what is not an import: names, comments, sizes.
func facts(files []file) []string {
	var broken []string
	documented := map[string]bool{} // by folder and package name; only what a person wrote
	for _, f := range files {
		if !f.generated {
			id := f.dir() + " (package " + strings.TrimSuffix(f.pkg, "_test") + ")"
			documented[id] = documented[id] || f.documented
		}
		if f.lines > maxLines && !f.generated {
			broken = append(broken, fmt.Sprintf("%s has %d lines (at most %d): it is more than one thing", f.name, f.lines, maxLines))
		}
		for _, part := range append(strings.Split(f.dir(), "/"), strings.TrimSuffix(f.pkg, "_test")) {
			if slices.Contains(vague, part) {
				broken = append(broken, fmt.Sprintf("%s: %q says nothing: name the package after what it provides", f.name, part))
				break
			}
		}
	}
	for id, ok := range documented {
		if !ok {
			broken = append(broken, id+" has no package comment: say what it is, what it promises, what it is not")
		}
	}
	slices.Sort(broken)
	return slices.Compact(broken)
}
