package logs

import (
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/agent/internal/run"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// ErrAbandoned is what a sink returns once nobody waits for its output any more.
var ErrAbandoned = errors.New("the output of this attempt is not wanted any more")

// chunkOverhead is what a chunk costs besides its data, roughly.
const chunkOverhead = 64

// Stream is the output of one attempt, a [run.Sink]. Made by [Shipper.Open]; safe
// for concurrent use.
type Stream struct {
	shipper *Shipper
	jobID   string
	attempt int32

	flushed chan struct{} // closed under the shipper's lock

	// Guarded by the shipper's lock.
	room    *sync.Cond             // signalled when bytes shrinks or the stream ends
	chunks  []*registryv1.LogChunk // not acknowledged, in order
	sent    int                    // how many of them this connection has sent
	bytes   int                    // what they take
	seq     int64                  // of the last chunk
	total   int64                  // bytes of data taken
	dropped int64                  // bytes that chunks tell to be dropped
	deaf    bool                   // takes nothing more from the job
	closed  bool                   // the last chunk is there
	over    bool                   // flushed or abandoned
}

// Write takes a chunk. It blocks while the window is full.
func (st *Stream) Write(c run.Chunk) error {
	s := st.shipper
	s.mu.Lock()
	defer s.mu.Unlock()
	size := len(c.Data) + chunkOverhead
	for !st.deaf && st.bytes > 0 && st.bytes+size > s.cfg.Window {
		st.room.Wait()
	}
	if st.deaf {
		return ErrAbandoned
	}
	st.dropped += c.Dropped
	st.total += int64(len(c.Data))
	st.append(&registryv1.LogChunk{Stream: c.Stream, Time: timestamppb.New(c.Time), Data: c.Data, Dropped: c.Dropped})
	return nil
}

// append numbers a chunk and queues it. The shipper's lock is held.
func (st *Stream) append(c *registryv1.LogChunk) {
	st.seq++
	c.Seq = st.seq
	st.chunks = append(st.chunks, c)
	st.bytes += len(c.GetData()) + chunkOverhead
	st.shipper.wakeUp()
}

// Close marks the end of the output. dropped is how many bytes the whole attempt
// lost; the last chunk tells of those that no chunk told of before. A Write that
// blocks is given up.
func (st *Stream) Close(dropped int64) {
	s := st.shipper
	s.mu.Lock()
	defer s.mu.Unlock()
	st.hush()
	if st.closed || st.over {
		return
	}
	st.closed = true
	st.append(&registryv1.LogChunk{Stream: run.Stdout, Time: timestamppb.New(time.Now()), Dropped: max(dropped-st.dropped, 0), Eof: true})
}

// Deafen takes nothing more from the job: a Write that blocks, and any later one,
// returns ErrAbandoned. What was taken is still shipped.
func (st *Stream) Deafen() {
	st.shipper.mu.Lock()
	defer st.shipper.mu.Unlock()
	st.hush()
}

func (st *Stream) hush() {
	st.deaf = true
	st.room.Broadcast()
}

// Abandon forgets everything that is not acknowledged yet.
func (st *Stream) Abandon() {
	st.shipper.mu.Lock()
	defer st.shipper.mu.Unlock()
	st.hush()
	st.end()
}

// end removes the stream from its shipper. The lock is held.
func (st *Stream) end() {
	if st.over {
		return
	}
	st.over = true
	st.chunks, st.bytes, st.sent = nil, 0, 0
	st.shipper.remove(st)
	close(st.flushed)
}

// Flushed is closed when everything including the end is acknowledged, or the
// stream was abandoned.
func (st *Stream) Flushed() <-chan struct{} { return st.flushed }

// Bytes is how many bytes of output were taken.
func (st *Stream) Bytes() int64 {
	st.shipper.mu.Lock()
	defer st.shipper.mu.Unlock()
	return st.total
}

// acked forgets what the registry has stored. The lock is held; it says whether
// that was news.
func (st *Stream) acked(seq int64) bool {
	n := 0
	for n < len(st.chunks) && st.chunks[n].GetSeq() <= seq {
		st.bytes -= len(st.chunks[n].GetData()) + chunkOverhead
		st.chunks[n] = nil
		n++
	}
	if n == 0 {
		return false
	}
	st.chunks = st.chunks[n:]
	st.sent = max(st.sent-n, 0) // the server may have stored what only an earlier connection sent
	st.room.Broadcast()
	if st.closed && len(st.chunks) == 0 {
		st.end()
	}
	return true
}

// batch takes the next chunks to send, at most limit bytes of them but at least
// one. The lock is held.
func (st *Stream) batch(limit int) []*registryv1.LogChunk {
	from, size := st.sent, 0
	for st.sent < len(st.chunks) {
		size += len(st.chunks[st.sent].GetData()) + chunkOverhead
		if size > limit && st.sent > from {
			break
		}
		st.sent++
	}
	return append([]*registryv1.LogChunk(nil), st.chunks[from:st.sent]...)
}
