package core_test

import (
	"fmt"
	"testing"
	"time"

	"hodei.dev/services/timeout-monitor/core"
)

const threshold = 30 * time.Second

// fleet is n connected workers that were all heard of at the given second.
func fleet(n int, s float64) *core.Silence {
	out := core.NewSilence(threshold, at(0))
	for i := range n {
		id := fmt.Sprintf("w%d", i)
		out.Connected(id, at(0))
		out.Heard(id, at(s), at(s))
	}
	return out
}

func ids(l core.Look) string {
	out := ""
	for _, s := range l.Silent {
		out += s.ID + " "
	}
	return out
}

func TestSilence(t *testing.T) {
	t.Run("one of three", func(t *testing.T) {
		s := fleet(3, 10)
		s.Heard("w1", at(35), at(35))
		s.Heard("w2", at(35), at(35))
		if l := s.Look(at(39.9)); len(l.Silent) != 0 || !l.Next.Equal(at(40)) {
			t.Errorf("before 30 s: %+v", l)
		}
		if l := s.Look(at(40)); ids(l) != "w0 " || !l.Silent[0].LastSeen.Equal(at(10)) {
			t.Errorf("after 30 s: %+v", l)
		}
	})
	t.Run("told once, and again with backoff", func(t *testing.T) {
		s := fleet(1, 0)
		s.Told("w0", at(30))
		if l := s.Look(at(59)); len(l.Silent) != 0 || !l.Next.Equal(at(60)) {
			t.Errorf("%+v", l)
		}
		s.Told("w0", at(60))
		if l := s.Look(at(119)); len(l.Silent) != 0 || !l.Next.Equal(at(120)) {
			t.Errorf("%+v", l)
		}
		s.Heard("w0", at(100), at(100))
		if l := s.Look(at(129)); len(l.Silent) != 0 || !l.Next.Equal(at(130)) {
			t.Errorf("after a heartbeat: %+v", l)
		}
		if l := s.Look(at(130)); ids(l) != "w0 " {
			t.Errorf("a new silence: %+v", l)
		}
	})
	t.Run("silence before the connection, the watch or deafness does not count", func(t *testing.T) {
		s := core.NewSilence(threshold, at(100))
		s.Connected("w0", at(50))
		s.Connected("w1", at(110))
		if l := s.Look(at(129)); len(l.Silent) != 0 {
			t.Errorf("%+v", l)
		}
		if l := s.Look(at(130)); ids(l) != "w0 " || !l.Silent[0].LastSeen.IsZero() {
			t.Errorf("%+v", l)
		}
		s.Deaf(at(135))
		if l := s.Look(at(164)); len(l.Silent) != 0 {
			t.Errorf("%+v", l)
		}
		if l := s.Look(at(165)); ids(l) != "w0 w1 " {
			t.Errorf("%+v", l)
		}
	})
	t.Run("a worker that is not connected is not listened to", func(t *testing.T) {
		s := fleet(2, 0)
		s.Gone("w0")
		s.Heard("w0", at(1), at(1))
		if l := s.Look(at(40)); ids(l) != "w1 " || s.Workers() != 1 {
			t.Errorf("%+v", l)
		}
	})
	t.Run("none", func(t *testing.T) {
		s := core.NewSilence(0, at(0))
		s.Connected("w0", at(0))
		if l := s.Look(at(1e6)); len(l.Silent) != 0 {
			t.Errorf("%+v", l)
		}
	})
}

func TestMassSilence(t *testing.T) {
	t.Run("staggered heartbeats that stop together report nobody", func(t *testing.T) {
		s := core.NewSilence(threshold, at(0))
		for i := range 10 {
			id := fmt.Sprintf("w%d", i)
			s.Connected(id, at(0))
			s.Heard(id, at(float64(i)/2), at(float64(i)/2))
		}
		for sec := 0.0; sec < 90; sec += 0.5 {
			l := s.Look(at(sec))
			if len(l.Silent) != 0 || l.Held != (sec >= 30) {
				t.Fatalf("at %.1f: %+v", sec, l)
			}
			if !l.Next.After(at(sec)) {
				t.Fatalf("at %.1f it looks again at %s", sec, l.Next)
			}
		}
		if l := s.Look(at(94.5)); len(l.Silent) != 10 {
			t.Errorf("after three windows: %+v", l)
		}
	})
	t.Run("back below the share, the rest is reported", func(t *testing.T) {
		s := fleet(10, 0)
		if l := s.Look(at(31)); !l.Held || len(l.Silent) != 0 {
			t.Errorf("%+v", l)
		}
		for i := 3; i < 10; i++ {
			s.Heard(fmt.Sprintf("w%d", i), at(32), at(32))
		}
		if l := s.Look(at(33)); l.Held || ids(l) != "w0 w1 w2 " {
			t.Errorf("%+v", l)
		}
	})
	t.Run("fewer than four workers are no mass", func(t *testing.T) {
		if l := fleet(3, 0).Look(at(31)); l.Held || len(l.Silent) != 3 {
			t.Errorf("%+v", l)
		}
	})
}
