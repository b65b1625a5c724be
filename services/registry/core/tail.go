package core

import "bytes"

// Tail finds where the last n lines of a log begin. It is fed the log's pieces
// from the last to the first, until it is done.
//
// A line belongs to one stream and ends with '\n' or with what the stream has
// last; the lines of both streams count together, in the order of their ends.
type Tail struct {
	left    int
	streams map[string]*tailStream
}

type tailStream struct {
	// counted: at least one of the last lines is this stream's.
	counted bool
	// found: the beginning of its first such line is known: offset in the piece seq.
	found  bool
	seq    int64
	offset int
}

// NewTail looks for the last n lines, n at least 1.
func NewTail(n int) *Tail { return &Tail{left: n, streams: map[string]*tailStream{}} }

// Add takes the piece before those that it has, and tells whether no more is needed.
func (t *Tail) Add(seq int64, stream string, data []byte) (done bool) {
	if len(data) == 0 {
		return t.done()
	}
	s := t.streams[stream]
	if s == nil {
		s = &tailStream{}
		t.streams[stream] = s
		if data[len(data)-1] != '\n' && t.left > 0 {
			// The stream's last line has no end.
			t.left--
			s.counted = true
		}
	}
	for end := len(data); !s.found; {
		i := bytes.LastIndexByte(data[:end], '\n')
		if i < 0 {
			break
		}
		if t.left > 0 {
			t.left--
			s.counted = true
		} else {
			// This line's end is not counted: what follows it is.
			s.found, s.seq, s.offset = true, seq, i+1
		}
		end = i
	}
	return t.done()
}

func (t *Tail) done() bool {
	if t.left > 0 {
		return false
	}
	for _, s := range t.streams {
		if s.counted && !s.found {
			return false
		}
	}
	return true
}

// Cut is what of a piece belongs to the last lines; nil for nothing.
func (t *Tail) Cut(seq int64, stream string, data []byte) []byte {
	s := t.streams[stream]
	switch {
	case s == nil, !s.counted:
		return nil
	case !s.found, seq > s.seq:
		return data
	case seq < s.seq:
		return nil
	}
	return data[s.offset:]
}

// First is the sequence before which no piece is needed.
func (t *Tail) First() int64 {
	first := int64(-1)
	for _, s := range t.streams {
		if !s.counted {
			continue
		}
		if !s.found {
			return 0
		}
		if first < 0 || s.seq < first {
			first = s.seq
		}
	}
	return max(first, 0)
}
