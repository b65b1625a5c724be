package projection_test

import (
	"runtime"
	"slices"
	"testing"

	"hodei.dev/libs/eventing/eventingtest"
)

// heldWhileAway bounds what this process may keep in memory, in bytes, for events
// that are appended while NATS is away, whatever their number.
const heldWhileAway = 4 << 20

// NATS is away and the log grows on. Nothing is kept for it in memory, be it 5,000
// events or 50,000: the log keeps them, and all come once NATS is back.
func TestALogThatGrowsWithoutNATSCostsNoMemory(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board", "A")
	p.background(s.Run)
	p.bulk(1000, "A")
	s.reaches(t, p.head())
	for _, n := range []int{5_000, 50_000} {
		p.srv.Stop()
		before := heap()
		p.bulk(n, "A", "B", "B", "B")
		held := heap() - before
		t.Logf("%d events appended without NATS hold %d KiB", n, held>>10)
		if held > heldWhileAway {
			t.Errorf("%d events appended without NATS hold %d bytes", n, held)
		}
		p.srv.Start()
		s.reaches(t, p.head())
	}
	if got := s.seen(t); !slices.Equal(got, p.want("A")) {
		t.Errorf("%d events were applied, in another order or not once", len(got))
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what finalizers freed
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
