//go:build !linux

package proctree

import (
	"os/exec"

	"hodei.dev/libs/domain/fault"
)

// Without cgroups a tree is held together by sessions, descent and markers only.

type placement struct{}

type dirs struct{}

func findPlacement(want Mode) (placement, Capabilities, error) {
	caps := Capabilities{Mode: Groups, Reason: "cgroups exist on Linux only"}
	if want != Auto && want != Groups {
		return placement{}, caps, fault.New(fault.Unavailable, "process trees of mode %s work on Linux only", want)
	}
	return placement{}, caps, nil
}

func (placement) newTree(string) dirs                      { return dirs{} }
func (placement) sweep(string)                             {}
func (dirs) clone() dirs                                   { return dirs{} }
func (dirs) create() error                                 { return nil }
func (dirs) remove() error                                 { return nil }
func (dirs) processes() ([]Process, error)                 { return nil, nil }
func (dirs) killAll() (bool, error)                        { return false, nil }
func (dirs) freeze() func()                                { return func() {} }
func (*dirs) addControllers(placement, Limits) bool        { return false }
func (dirs) limit(Limits) (Enforced, error)                { return Enforced{}, nil }
func (dirs) usage() Usage                                  { return Usage{} }
func (dirs) oomKilled() bool                               { return false }
func onMainThread() bool                                   { return false }
func prepareThread()                                       {}
func startInside(cmd *exec.Cmd, _ dirs, _ placement) error { return cmd.Start() }
func (r *Root) reapOrphans() (func(), error)               { return nil, nil }
