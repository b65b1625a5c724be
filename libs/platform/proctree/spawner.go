package proctree

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"
)

// spawner starts all children of a root from one thread. The kernel ties three
// things to the thread that forks: the parent-death signal, the cgroups of
// version 1 that the child is born in, and (once unshared) the umask.
type spawner struct {
	home     placement // where the thread belongs between two starts
	requests chan spawnRequest
	quit     chan struct{}
	once     sync.Once
}

type spawnRequest struct {
	cmd  *exec.Cmd
	in   dirs
	done chan error
}

func newSpawner(home placement) *spawner {
	s := &spawner{home: home, requests: make(chan spawnRequest), quit: make(chan struct{})}
	ready := make(chan struct{})
	go s.run(ready)
	<-ready
	return s
}

// run never unlocks its thread, so the thread ends with it: nobody inherits its
// umask or its cgroups.
func (s *spawner) run(ready chan struct{}) {
	runtime.LockOSThread()
	if onMainThread() {
		// The main thread stands for the whole process in /proc and in cgroups:
		// hold it until another thread has been found.
		go s.run(ready)
		<-ready
		runtime.UnlockOSThread()
		return
	}
	close(ready)
	prepareThread()
	for {
		select {
		case req := <-s.requests:
			req.done <- startInside(req.cmd, req.in, s.home)
		case <-s.quit:
			return
		}
	}
}

func (s *spawner) start(cmd *exec.Cmd, in dirs) error {
	req := spawnRequest{cmd, in, make(chan error, 1)}
	select {
	case s.requests <- req:
		return <-req.done
	case <-s.quit:
		return errors.Join(errors.New("the root of process trees is closed"), os.ErrClosed)
	}
}

func (s *spawner) close() { s.once.Do(func() { close(s.quit) }) }
