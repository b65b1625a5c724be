package session

// key names an attempt.
type key struct {
	job     string
	attempt int32
}

// fate is what is known of an attempt that the agent does not have.
type fate struct {
	// over: it must never run here (again); else it was cancelled before it came.
	over   bool
	reason string
}

// remembered bounds the memory: the commands of one worker come in order, but for
// a few.
const remembered = 64

// memory remembers the fate of attempts that have ended, or whose end was asked
// for before they came. The oldest is forgotten first. The zero value is ready.
type memory struct {
	fates map[key]fate
	order []key
}

func (m *memory) put(k key, f fate) {
	if m.fates == nil {
		m.fates = map[key]fate{}
	}
	if old, known := m.fates[k]; known {
		if !old.over {
			m.fates[k] = f
		}
		return
	}
	if len(m.order) == remembered {
		delete(m.fates, m.order[0])
		m.order = append(m.order[:0], m.order[1:]...)
	}
	m.fates[k] = f
	m.order = append(m.order, k)
}

func (m *memory) get(k key) (fate, bool) {
	f, ok := m.fates[k]
	return f, ok
}
