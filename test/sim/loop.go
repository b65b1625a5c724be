package sim

import (
	"container/heap"
	"iter"
	"math/rand/v2"
	"time"
)

// loop is virtual time: what happens next is the earliest thing that was planned,
// the first planned among equals. One goroutine runs at a time, so a seed decides all.
type loop struct {
	now     time.Time
	planned plans
	seq     int
	rng     *rand.Rand
}

type planned struct {
	at  time.Time
	seq int
	do  func()
}

type plans []planned

func (p plans) Len() int { return len(p) }
func (p plans) Less(i, j int) bool {
	return p[i].at.Before(p[j].at) || p[i].at.Equal(p[j].at) && p[i].seq < p[j].seq
}
func (p plans) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *plans) Push(x any)   { *p = append(*p, x.(planned)) }
func (p *plans) Pop() any {
	old := *p
	x := old[len(old)-1]
	old[len(old)-1] = planned{}
	*p = old[:len(old)-1]
	return x
}

// after plans do for d from now.
func (l *loop) after(d time.Duration, do func()) {
	l.seq++
	heap.Push(&l.planned, planned{l.now.Add(max(d, 0)), l.seq, do})
}

// step does the next thing; false where nothing is left to do before the end.
func (l *loop) step(end time.Time) bool {
	if len(l.planned) == 0 || l.planned[0].at.After(end) {
		return false
	}
	next := heap.Pop(&l.planned).(planned)
	l.now = next.at
	next.do()
	return true
}

// chance is true with that probability.
func (l *loop) chance(p float64) bool { return l.rng.Float64() < p }

// between is a duration from lo up to hi.
func (l *loop) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(l.rng.Float64()*float64(hi-lo))
}

// process is something that can be killed and stopped: a service, an agent. What it
// plans happens while it lives, and only once it goes on where it is stopped.
type process struct {
	*loop
	name   string
	dead   bool
	paused time.Time
	// offBus is until when it cannot be reached by commands, nor hears of events; silent:
	// nobody is told so.
	offBus time.Time
	silent bool
	// skew is how far its clock is off.
	skew  time.Duration
	tasks map[*task]bool
	order []*task
}

func (l *loop) process(name string) *process {
	return &process{loop: l, name: name, tasks: map[*task]bool{}}
}

// clock is what the process believes that the time is.
func (p *process) clock() time.Time { return p.now.Add(p.skew) }

// later plans do for d from now, if the process lives then.
func (p *process) later(d time.Duration, do func()) {
	p.after(d, func() { p.ifAlive(do) })
}

func (p *process) ifAlive(do func()) {
	switch {
	case p.dead:
	case p.paused.After(p.now):
		p.after(p.paused.Sub(p.now), func() { p.ifAlive(do) })
	default:
		do()
	}
}

// cutOff tells whether it is off the bus.
func (p *process) cutOff() bool { return p.offBus.After(p.now) }

// pause stops the process, like SIGSTOP.
func (p *process) pause(d time.Duration) { p.paused = p.now.Add(d) }

// kill ends the process where it stands: what it was about to do it does not.
func (p *process) kill() {
	if p.dead {
		return
	}
	p.dead = true
	for _, t := range p.order {
		if p.tasks[t] && !t.running {
			t.stop()
		}
	}
	p.tasks, p.order = nil, nil
}

// task is a sequence of actions of a process that waits in between.
type task struct {
	*process
	next    func() (struct{}, bool)
	stop    func()
	yield   func(struct{}) bool
	running bool
	woken   int // counts the waits: a wake-up for an earlier one means nothing
}

// killed unwinds a task whose process is no more.
type killed struct{}

// start runs do as a task of the process, from now on.
func (p *process) start(do func(t *task)) {
	if p.dead {
		return
	}
	t := &task{process: p}
	t.next, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if r := recover(); r != nil && r != (killed{}) {
				panic(r)
			}
		}()
		t.yield = yield
		do(t)
	})
	p.tasks[t] = true
	p.order = append(p.order, t)
	p.later(0, t.resume)
}

func (t *task) resume() {
	if t.dead {
		return
	}
	t.running = true
	_, more := t.next()
	t.running = false
	if t.dead {
		t.stop()
		return
	}
	if !more {
		delete(t.tasks, t)
		if len(t.order) > 64 && len(t.order) > 2*len(t.tasks) {
			kept := t.order[:0]
			for _, o := range t.order {
				if t.tasks[o] {
					kept = append(kept, o)
				}
			}
			t.order = kept
		}
	}
}

// park waits until somebody calls the wake function that it hands out.
func (t *task) park(arrange func(wake func())) {
	if t.dead {
		panic(killed{})
	}
	t.woken++
	ticket := t.woken
	arrange(func() {
		if t.woken == ticket {
			t.woken++
			t.later(0, t.resume)
		}
	})
	if !t.yield(struct{}{}) || t.dead {
		panic(killed{})
	}
}

// sleep waits.
func (t *task) sleep(d time.Duration) {
	t.park(func(wake func()) { t.after(d, wake) })
}

// box is a value that will be there once; whoever waits for it is woken.
type box[T any] struct {
	full bool
	v    T
	wake func()
}

func (b *box[T]) put(v T) {
	if b.full {
		return
	}
	b.full, b.v = true, v
	if b.wake != nil {
		b.wake()
	}
}

// wait waits for a box until d has passed; 0 = for ever.
func wait[T any](t *task, b *box[T], d time.Duration) (T, bool) {
	if !b.full {
		t.park(func(wake func()) {
			b.wake = wake
			if d > 0 {
				t.after(d, wake)
			}
		})
		b.wake = nil
	}
	return b.v, b.full
}

// queue is a mailbox.
type queue[T any] struct {
	items []T
	wake  func()
}

func (q *queue[T]) put(v T) {
	q.items = append(q.items, v)
	if q.wake != nil {
		q.wake()
	}
}

// take waits for an item until d has passed; 0 = for ever.
func take[T any](t *task, q *queue[T], d time.Duration) (v T, ok bool) {
	if len(q.items) == 0 {
		t.park(func(wake func()) {
			q.wake = wake
			if d > 0 {
				t.after(d, wake)
			}
		})
		q.wake = nil
	}
	if len(q.items) == 0 {
		return v, false
	}
	v, q.items = q.items[0], q.items[1:]
	return v, true
}
