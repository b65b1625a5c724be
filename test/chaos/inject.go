package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// injected is a fault with what became of it.
type injected struct {
	mishap
	sort sort
	// began and healed are when it was there.
	began, healed time.Time
	// skipped is why it could not be made; err why it could not be made or ended as it should.
	skipped string
	err     error
	// workerID is whose agent was hit.
	workerID string
	// recovered is how long after the fault had ended the next job had, or, of an agent
	// that was lost, how long after its beginning its job was queued again. 0 = unknown.
	recovered time.Duration
}

// wait waits as long as the fault lasts.
func (f *injected) wait(ctx context.Context) {
	select {
	case <-time.After(f.lasts):
	case <-ctx.Done():
	}
}

func (f *injected) skip(why string)  { f.skipped = why }
func (f *injected) worker(id string) { f.workerID = id }

func (f *injected) String() string {
	s := fmt.Sprintf("%s – %s %s", f.began.Format(clock), f.healed.Format(clock), f.mishap)
	if f.workerID != "" {
		s += " (worker " + f.workerID + ")"
	}
	if f.skipped != "" {
		s += ": not made: " + f.skipped
	}
	return s
}

// injector makes the faults of a plan.
type injector struct {
	platform *platform
	load     *load
	log      func(format string, args ...any)
	// serial: a fault begins when the one before has been recovered from.
	serial bool
	work   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	scopes map[string]*sync.Mutex
	done   []*injected
}

// run makes all faults at their times. Those that are there when ctx ends, end then;
// what has to be found out after that is found out under life.
func (i *injector) run(ctx, life context.Context, faults []mishap) {
	began := time.Now()
	for n, f := range faults {
		select {
		case <-time.After(time.Until(began.Add(f.at))):
		case <-ctx.Done():
			return
		}
		if i.serial {
			i.inject(ctx, life, n, f)
			continue
		}
		i.work.Go(func() { i.inject(ctx, life, n, f) })
	}
}

func (i *injector) inject(ctx, life context.Context, n int, f mishap) {
	done := &injected{mishap: f}
	for _, s := range sorts {
		if s.name == f.what {
			done.sort = s
		}
	}
	scope := i.scope(done.sort, f)
	scope.Lock()
	if ctx.Err() != nil {
		scope.Unlock()
		return
	}
	done.began = time.Now()
	i.log("%s", f)
	done.err = done.sort.do(ctx, i.platform, done)
	done.healed = time.Now()
	scope.Unlock()
	if done.err != nil {
		i.log("%s: %v", f, done.err)
	}
	if done.skipped == "" && done.err == nil && !done.sort.hits {
		done.recovered, _ = i.load.probe(life, fmt.Sprintf("probe-%d", n)) // a platform that does not recover is stuck, and found to be so
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.done = append(i.done, done)
}

func (i *injector) scope(s sort, f mishap) *sync.Mutex {
	if s.scope == "" {
		return &sync.Mutex{}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	key := s.scope + " " + f.target
	if i.scopes[key] == nil {
		i.scopes[key] = &sync.Mutex{}
	}
	return i.scopes[key]
}

// made are the faults that there really were.
func (i *injector) made() []*injected {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []*injected
	for _, f := range i.done {
		if f.skipped == "" {
			out = append(out, f)
		}
	}
	return out
}

// children tells whether a process has any.
func children(pid int) bool {
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err == nil && strings.TrimSpace(string(list)) != "" {
		return true
	}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // of one that has ended: none
	for _, t := range tasks {
		if list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name())); err == nil && strings.TrimSpace(string(list)) != "" {
			return true
		}
	}
	return false
}
