package run

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxOutput is what is delivered of one attempt, over both streams (R7.0).
const maxOutput = 64 << 20

// flushAfter is how long small writes are collected after a delivery.
const flushAfter = 20 * time.Millisecond

// drainIdle is how long a silent pipe is listened to after the job's end, and
// maxPipe what a pipe can hold by default, for root: more comes from somebody who
// escaped.
const (
	drainIdle = 500 * time.Millisecond
	maxPipe   = 1 << 20
)

// output delivers what a job writes.
type output struct {
	sink  Sink
	limit int64
	pumps sync.WaitGroup
	over  atomic.Bool

	call    sync.Mutex // held while the sink is called; guards the fields below
	seq     int64
	sent    int64
	dropped map[string]int64
	broken  bool // the sink refused: it is not called again

	mu      sync.Mutex // guards readers
	readers []*os.File
}

func newOutput(sink Sink, limit int64) *output {
	return &output{sink: sink, limit: limit, dropped: map[string]int64{}}
}

// pump delivers one stream until its end, in a goroutine of its own.
func (o *output) pump(stream string, r *os.File) {
	o.mu.Lock()
	o.readers = append(o.readers, r)
	o.mu.Unlock()
	o.pumps.Go(func() {
		defer r.Close()
		buf := make([]byte, MaxChunk)
		var last time.Time // of the last delivery
		for rest := maxPipe; rest > 0; {
			n, err := o.collect(r, buf, last)
			if n > 0 {
				o.deliver(stream, buf[:n])
				last = time.Now()
			}
			if err != nil {
				return
			}
			if o.over.Load() {
				rest -= n
			}
		}
	})
}

// collect reads what is there, at once when nothing was delivered lately, else
// until the buffer is full or it is time for the next delivery. An error is the
// end of the stream.
func (o *output) collect(r *os.File, buf []byte, last time.Time) (int, error) {
	n, err := o.read(r, buf)
	due := last.Add(flushAfter)
	if err != nil || n == len(buf) || o.over.Load() || time.Now().After(due) {
		return n, err
	}
	if r.SetReadDeadline(due) != nil {
		return n, nil
	}
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = r.SetReadDeadline(time.Time{})
	}
	return n, err
}

// read blocks until there is something. Once the job is over it waits no longer
// than drainIdle.
func (o *output) read(r *os.File, buf []byte) (int, error) {
	for {
		over := o.over.Load()
		var until time.Time
		if over {
			until = time.Now().Add(drainIdle)
		}
		if err := r.SetReadDeadline(until); err != nil {
			return 0, err
		}
		if !over && o.over.Load() {
			continue // expire came between: its wake-up may have been undone
		}
		n, err := r.Read(buf)
		if n == 0 && !over && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return n, err
	}
}

// expire says that the job and all it started are gone: what is still in the pipes
// is delivered, but a descendant that escaped is not waited for.
func (o *output) expire() {
	o.over.Store(true)
	o.mu.Lock()
	readers := o.readers
	o.mu.Unlock()
	for _, r := range readers {
		_ = r.SetReadDeadline(time.Unix(1, 0)) // closed: it has seen its end
	}
}

// deliver passes bytes on, or counts those that are over the limit or that nobody
// wants.
func (o *output) deliver(stream string, data []byte) {
	o.call.Lock()
	defer o.call.Unlock()
	if room := o.limit - o.sent; int64(len(data)) > room {
		o.dropped[stream] += int64(len(data)) - room
		data = data[:room]
	}
	if len(data) == 0 {
		return
	}
	o.sent += int64(len(data))
	if !o.write(Chunk{Stream: stream, Data: append([]byte(nil), data...)}) {
		o.dropped[stream] += int64(len(data))
	}
}

func (o *output) write(c Chunk) bool {
	if o.broken {
		return false
	}
	o.seq++
	c.Seq, c.Time = o.seq, time.Now()
	if o.sink.Write(c) != nil {
		o.broken = true
	}
	return !o.broken
}

// finish waits for the ends of both streams, marks those that lost bytes, and
// returns how many were lost.
func (o *output) finish() int64 {
	o.pumps.Wait()
	o.call.Lock()
	defer o.call.Unlock()
	var total int64
	for _, stream := range [...]string{Stdout, Stderr} {
		if n := o.dropped[stream]; n > 0 {
			total += n
			o.write(Chunk{Stream: stream, Dropped: n})
		}
	}
	return total
}

// feed writes the standard input of a job that may not want it.
func feed(w *os.File, data []byte) {
	go func() {
		_, _ = w.Write(data) // a job that does not read all of it is no failure
		_ = w.Close()
	}()
}
