package run

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// basePath is the PATH of a job that brings none.
const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// scriptName is the only file in a new work directory.
const scriptName = ".hodei-script"

// workdir is the private directory of one attempt: home, working directory and
// place for temporary files in one, because making a directory may take as long as
// starting a process.
type workdir struct{ path, script string }

// makeWorkdir makes the directory and writes the script, both owned by who the job
// runs as.
func makeWorkdir(spec Spec) (w workdir, err error) {
	if spec.WorkDir == "" {
		w.path, err = os.MkdirTemp("", "hodei-job-")
	} else if w.path, err = filepath.Abs(spec.WorkDir); err == nil {
		err = os.Mkdir(w.path, 0o700)
	}
	if err != nil {
		return workdir{}, fmt.Errorf("making the work directory: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(w.path)
		}
	}()
	paths := []string{w.path}
	if spec.Script != nil {
		w.script = filepath.Join(w.path, scriptName)
		if err := os.WriteFile(w.script, spec.Script.Content, 0o700); err != nil {
			return w, fmt.Errorf("writing the script: %w", err)
		}
		paths = append(paths, w.script)
	}
	if c := spec.RunAs; c != nil {
		for _, p := range paths {
			if err := os.Lchown(p, int(c.UID), int(c.GID)); err != nil {
				return w, fmt.Errorf("giving the work directory to user %d: %w", c.UID, err)
			}
		}
	}
	return w, nil
}

// remove removes the work directory, also what the job made read-only.
func (w workdir) remove() error {
	err := os.RemoveAll(w.path)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(w.path, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	if err := os.RemoveAll(w.path); err != nil {
		return fmt.Errorf("removing the work directory: %w", err)
	}
	return nil
}

// cwd is the working directory of the job, checked.
func (w workdir) cwd(spec Spec) (string, *Result) {
	dir := spec.Cwd
	if dir == "" {
		return w.path, nil
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(w.path, dir)
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", refused(Validation, "CWD_NOT_FOUND", "the working directory "+spec.Cwd+" does not exist on the worker",
			"use a directory that exists there, or leave it out to get a private one")
	case err != nil:
		return "", refused(Validation, "CWD_UNUSABLE", "the working directory "+spec.Cwd+" cannot be used: "+err.Error(), "use another directory")
	case !info.IsDir():
		return "", refused(Validation, "CWD_NOT_A_DIRECTORY", "the working directory "+spec.Cwd+" is not a directory", "name a directory")
	}
	return dir, nil
}

// environ is the environment of the job: a clean base, then its own, then what
// tells it who it is. Nothing of the agent's.
func environ(spec Spec, w workdir, cwd string) ([]string, *Result) {
	env := map[string]string{
		"PATH": basePath, "HOME": w.path, "LANG": "C.UTF-8", "TMPDIR": w.path, "PWD": cwd, "SHELL": "/bin/sh",
	}
	if c := spec.RunAs; c != nil {
		if c.Home != "" {
			env["HOME"] = c.Home
		}
		name := c.Name
		if name == "" {
			name = strconv.FormatUint(uint64(c.UID), 10)
		}
		env["USER"], env["LOGNAME"] = name, name
	}
	for k, v := range spec.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return nil, refused(Validation, "ENV_INVALID", fmt.Sprintf("the environment variable %q is not valid", k),
				"use a name without '=' and no zero bytes")
		}
		env[k] = v
	}
	env["HODEI_JOB_ID"], env["HODEI_ATTEMPT"], env["HODEI_NAMESPACE"] = spec.JobID, strconv.Itoa(spec.Attempt), spec.Namespace
	out := make([]string, 0, len(env)+1)
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out, nil
}

// argv is what is executed: the program's path and its arguments.
func argv(spec Spec, w workdir, cwd, path string) (string, []string, *Result) {
	args := spec.Command
	if s := spec.Script; s != nil {
		interpreter := strings.Fields(s.Interpreter)
		if len(interpreter) == 0 && !strings.HasPrefix(string(s.Content), "#!") {
			interpreter = []string{"sh"}
		}
		args = append(append(interpreter, w.script), args...)
	}
	if len(args) == 0 || args[0] == "" {
		return "", nil, refused(Validation, "COMMAND_EMPTY", "there is no command to run", "give a command or a script")
	}
	for _, a := range args {
		if strings.Contains(a, "\x00") {
			return "", nil, refused(Validation, "COMMAND_INVALID", "the command contains a zero byte", "remove it")
		}
	}
	file, r := lookup(args[0], cwd, path)
	return file, args, r
}

// lookup finds a program as a shell does.
func lookup(name, cwd, path string) (string, *Result) {
	if strings.Contains(name, "/") {
		file := name
		if !filepath.IsAbs(file) {
			file = filepath.Join(cwd, file)
		}
		if err := executable(file); err != nil {
			return "", notExecutable(name, err)
		}
		return file, nil
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		file := filepath.Join(dir, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", notExecutable(name, denied)
	}
	return "", notFound(name, "it is in no directory of PATH ("+path+")")
}

// executable says why a file cannot be a program; the kernel has the last word.
func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case info.IsDir(), info.Mode()&0o111 == 0:
		return &fs.PathError{Op: "execute", Path: file, Err: syscall.EACCES}
	}
	return nil
}
