package sim

import (
	"fmt"
	"time"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/circuit"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"

	provisionercore "hodei.dev/services/provisioner/core"
	monitorcore "hodei.dev/services/timeout-monitor/core"
)

// rounds is how often a decision that met a conflict is taken again, as in every service.
const rounds = 5

// fact is an event of the log with what it says.
type fact struct {
	event.Event
	says any
}

// stream is an aggregate as its events make it: what whoever loads it finds.
type stream struct {
	id      string
	typ     string
	version int
	created event.Event
	last    event.Event
	// change is the latest event that changed the state.
	change   event.Event
	job      job.Job
	worker   worker.Worker
	provider provider.Provider
	circuit  circuit.Circuit
	rejected []job.ResultRejected
	fate     provisionercore.Fate
	watch    monitorcore.Watch
	terminal bool
	events   []int
}

// eventLog is the log in Postgres: appends with the versions that they expect, one
// position after the other, all or nothing.
type eventLog struct {
	w       *world
	events  []fact
	streams map[string]*stream
	order   []*stream
	ids     map[string]int // event id -> position
	nextID  int
	// feeds hear of each commit.
	feeds []*feed
	// away until then: Postgres does not answer.
	away time.Time
}

func newLog(w *world) *eventLog {
	return &eventLog{w: w, streams: map[string]*stream{}, ids: map[string]int{}}
}

// get returns an aggregate; the zero stream where there is none.
func (l *eventLog) get(id string) *stream {
	if s, ok := l.streams[id]; ok {
		return s
	}
	return &stream{id: id}
}

// newUUID makes the n-th id of the run, in the form of a UUIDv7.
func (l *eventLog) newUUID() string {
	l.nextID++
	return fmt.Sprintf("019a0000-0000-7000-8000-%012x", l.nextID)
}

// sign gives events ids that the seed decides.
func (l *eventLog) sign(a store.Append) store.Append {
	for _, c := range a.Changes {
		for i := range c.Events {
			c.Events[i].ID = l.newUUID()
		}
	}
	return a
}

// commit is the server-side function: versions are checked, positions are contiguous,
// and an append that is there already is answered as the first time.
func (l *eventLog) commit(a store.Append) ([]fact, error) {
	if p, ok := l.ids[a.Changes[0].Events[0].ID]; ok {
		var out []fact
		for range count(a) {
			out, p = append(out, l.events[p-1]), p+1
		}
		return out, nil
	}
	for _, c := range a.Changes {
		if s := l.get(c.Stream.ID); s.version != c.Expected {
			return nil, &store.ConflictError{Stream: c.Stream, Expected: c.Expected, Actual: s.version}
		}
	}
	first := len(l.events)
	for _, c := range a.Changes {
		for i, e := range c.Events {
			e.Stream, e.StreamVersion, e.Position, e.Time = c.Stream, c.Expected+i+1, int64(len(l.events)+1), l.w.now
			says, err := catalogue.Decode(e.Type, e.Version, e.Data)
			if err != nil {
				panic(err)
			}
			l.ids[e.ID] = len(l.events) + 1
			l.events = append(l.events, fact{e, says})
			l.fold(e, says)
		}
	}
	for _, f := range l.feeds {
		f.nudge()
	}
	return l.events[first:], nil
}

func count(a store.Append) (n int) {
	for _, c := range a.Changes {
		n += len(c.Events)
	}
	return n
}

func (l *eventLog) fold(e event.Event, says any) {
	s, ok := l.streams[e.Stream.ID]
	if !ok {
		s = &stream{id: e.Stream.ID, typ: e.Stream.Type, created: e}
		s.job.ID, s.worker.ID, s.provider.ID, s.circuit.ID = s.id, s.id, s.id, s.id
		l.streams[s.id] = s
		l.order = append(l.order, s)
	}
	was := s.worker.State
	switch own := says.(type) {
	case job.Event:
		s.job = s.job.Evolve(own, job.At{Version: e.StreamVersion, Time: e.Time})
		s.terminal = s.job.State.Terminal()
		if r, ok := says.(job.ResultRejected); ok {
			s.rejected = append(s.rejected, r)
		}
	case worker.Event:
		s.worker = s.worker.Evolve(own, worker.At{Version: e.StreamVersion, Time: e.Time})
		s.terminal = s.worker.State.Terminal()
		s.fate.Follow(says, e.Time)
	case provider.Event:
		s.provider = s.provider.Evolve(own, provider.At{Version: e.StreamVersion, Time: e.Time})
	case circuit.Event:
		s.circuit = s.circuit.Evolve(own, circuit.At{Version: e.StreamVersion, Time: e.Time})
	}
	s.job.Version, s.worker.Version, s.provider.Version = e.StreamVersion, e.StreamVersion, e.StreamVersion
	s.watch = s.watch.Observe(says, monitorcore.At{Version: e.StreamVersion, Time: e.Time, ID: e.ID})
	s.version, s.last = e.StreamVersion, e
	if s.worker.State != was {
		s.change = e
	}
	s.events = append(s.events, len(l.events)-1)
}

// errAway is what a store reports whose Postgres does not answer.
var errAway = fault.New(fault.Unavailable, "the event log is away")

// read is what every load costs. It fails while Postgres is away.
func (l *eventLog) read(t *task) error {
	t.sleep(t.between(200*time.Microsecond, 2*time.Millisecond))
	if l.away.After(l.w.now) {
		return errAway
	}
	return nil
}

// append commits after a while. The caller may be killed before it, and between the
// commit and the answer; and where Postgres goes away, or the answer is lost, it hears
// that nothing is known.
func (l *eventLog) append(t *task, a store.Append) ([]fact, error) {
	l.w.chaos.point(t.process, "before an append")
	t.sleep(t.between(300*time.Microsecond, 4*time.Millisecond))
	if l.away.After(l.w.now) {
		return nil, errAway
	}
	facts, err := l.commit(a)
	if err == nil {
		l.w.chaos.point(t.process, "after an append")
	}
	lost := err == nil && l.w.chaos.loses(lostAnswer)
	t.sleep(t.between(100*time.Microsecond, 2*time.Millisecond))
	if lost {
		return nil, errAway
	}
	return facts, err
}

// jobChange and workerChange are the aggregates' parts of an append.
func jobChange[F event.Fact](a *store.Append, j job.Job, meta event.Meta, facts []F) {
	if len(facts) > 0 {
		a.Changes = append(a.Changes, must(aggregate.JobChange(j, meta, facts)))
	}
}

func workerChange[F event.Fact](a *store.Append, w worker.Worker, meta event.Meta, facts []F) {
	if len(facts) > 0 {
		a.Changes = append(a.Changes, must(aggregate.WorkerChange(w, meta, facts)))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decide loads a worker, decides and appends, again while others are quicker.
func (l *eventLog) decide(t *task, id string, decide func(s *stream) ([]worker.Event, event.Meta, error)) error {
	for range rounds {
		if err := l.read(t); err != nil {
			return err
		}
		facts, meta, err := decide(l.get(id))
		if err != nil || len(facts) == 0 {
			return err
		}
		var a store.Append
		workerChange(&a, l.get(id).worker, meta, facts)
		if _, err = l.append(t, l.sign(a)); !isConflict(err) {
			return err
		}
	}
	return fault.New(fault.Conflict, "worker %s changes all the time", id)
}

// feed delivers the log to one activation of a service, in order, a while later.
type feed struct {
	*process
	log      *eventLog
	position int64
	// handle takes events; an error has them come again. stored is told what was handled.
	handle func(t *task, f fact) error
	stored func(position int64)
	over   bool // its process does something else now
	wake   queue[struct{}]
}

// follow starts a feed after a position.
func (l *eventLog) follow(p *process, position int64, handle func(t *task, f fact) error, stored func(int64)) *feed {
	f := &feed{process: p, log: l, position: position, handle: handle, stored: stored}
	kept := l.feeds[:0]
	for _, o := range l.feeds {
		if !o.dead && !o.over {
			kept = append(kept, o)
		}
	}
	l.feeds = append(kept, f)
	p.start(f.run)
	return f
}

func (f *feed) nudge() {
	if len(f.wake.items) == 0 {
		f.wake.put(struct{}{})
	}
}

// rewind has events come again, as after a wiped stream or an expired acknowledgement.
func (f *feed) rewind(n int64) {
	f.position = max(0, f.position-n)
	f.nudge()
}

func (f *feed) run(t *task) {
	for !f.over {
		if f.position >= int64(len(f.log.events)) {
			take(t, &f.wake, 0)
		}
		t.sleep(f.log.w.chaos.delivery())
		if f.cutOff() {
			t.sleep(f.offBus.Sub(f.now))
		}
		for n := 0; n < 32 && f.position < int64(len(f.log.events)); n++ {
			at := f.position
			if err := f.handle(t, f.log.events[at]); err != nil {
				t.sleep(t.between(100*time.Millisecond, 500*time.Millisecond))
				break
			}
			if f.position == at { // else it was rewound meanwhile
				f.position++
			}
		}
		f.log.w.chaos.point(f.process, "before its position is stored")
		if f.stored != nil {
			f.stored(f.position)
		}
	}
}
