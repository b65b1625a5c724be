package core

// remembered is how many ends are remembered: those of many seconds at full load. What
// is told of an aggregate late was read, or appended, before its end, by somebody who
// was on the way back meanwhile.
const remembered = 1 << 15

// ends remembers the ids of jobs and workers that have ended, the latest ones. What
// is told of them afterwards is old, and must not bring them back: nothing would ever
// take them out again. The zero value is ready.
type ends struct {
	ids  map[string]struct{}
	ring []string
	next int // in the ring: the oldest, once it is full
}

func (e *ends) add(id string) {
	if e.has(id) {
		return
	}
	if e.ids == nil {
		e.ids = map[string]struct{}{}
	}
	e.ids[id] = struct{}{}
	if len(e.ring) < remembered {
		e.ring = append(e.ring, id)
		return
	}
	delete(e.ids, e.ring[e.next])
	e.ring[e.next] = id
	e.next = (e.next + 1) % remembered
}

func (e *ends) has(id string) bool {
	_, ok := e.ids[id]
	return ok
}
