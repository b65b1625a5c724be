package consumer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/deadletter"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, eventingtest.ServersGoroutines()...) }

func TestDeliversWhatIsThereAndWhatComes(t *testing.T) {
	w := newWorld(t)
	s := &sink{}
	c, _ := w.consume(w.config(s)) // before there is a stream
	w.relay(0)
	w.add(2000)
	s.got(t, w.want(0))
	for range 50 {
		w.add(3)
	}
	s.got(t, w.want(0))
	eventingtest.Eventually(t, "caught up", func() bool { st := c.Status(); return st.Position == 2150 && st.Pending == 0 && st.Active })
	if c.Status().LastEventTime.IsZero() {
		t.Fatal("no time")
	}
}

func TestDeliversOnlyItsTypes(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(900, "A", "B", "C")
	s := &sink{}
	c, _ := w.consume(w.config(s, "A", "C"))
	s.got(t, w.want(0, "A", "C"))
	w.add(9, "B") // not its own, but it goes on
	eventingtest.Eventually(t, "the head", func() bool { return c.Status().Position >= 900 })
}

func TestGathersWhatComesSoonAfterABatch(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	s := &sink{}
	cfg := w.config(s)
	cfg.Gather, cfg.MaxBatch = time.Hour, 10 // only a full batch goes before the hour is over
	w.consume(cfg)
	w.add(1)
	s.got(t, w.want(0)) // the first one at once
	for range 10 {
		w.add(1)
	}
	s.got(t, w.want(0))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.batches != 2 {
		t.Fatalf("%d batches", s.batches)
	}
}

func TestTheStoredPositionIsTheTruth(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(1000)
	first := &sink{}
	_, stop := w.consume(w.config(first))
	first.got(t, w.want(0))
	stop()
	for _, position := range []int64{500, 0, 1000, 999} {
		s := &sink{}
		cfg := w.config(s)
		cfg.Start = startAt(position) // whatever the durable's floor says
		_, stop := w.consume(cfg)
		w.add(10)
		s.got(t, w.want(position))
		stop()
	}
}

func TestWhatTheStreamNoLongerHasComesFromTheLog(t *testing.T) {
	for _, types := range [][]string{nil, {"A"}} {
		t.Run(fmt.Sprint(types), func(t *testing.T) {
			w := newWorld(t)
			w.add(700, "A", "B")
			w.relay(400) // a stream that begins above
			s := &sink{}
			_, stop := w.consume(w.config(s, types...))
			s.got(t, w.want(0, types...))
			stop()

			stream, err := w.js.Stream(t.Context(), bus.EventsStream)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(200)); err != nil { // expired
				t.Fatal(err)
			}
			for _, seq := range []uint64{250, 251, 260} { // gaps inside
				if err := stream.DeleteMsg(t.Context(), seq); err != nil {
					t.Fatal(err)
				}
			}
			again := &sink{}
			cfg := w.config(again, types...)
			cfg.Start = startAt(450)
			_, stop = w.consume(cfg)
			w.add(20, "A", "B")
			again.got(t, w.want(450, types...))
			stop()

			if err := stream.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
			empty := &sink{}
			_, _ = w.consume(w.config(empty, types...))
			empty.got(t, w.want(0, types...))
			w.add(20, "A", "B")
			empty.got(t, w.want(0, types...))
		})
	}
}

func TestTheStreamIsMadeAnewWhileConsuming(t *testing.T) {
	w := newWorld(t)
	stop := w.relay(0)
	w.add(300)
	s := &sink{}
	w.consume(w.config(s))
	s.got(t, w.want(0))
	stop()
	if err := w.js.DeleteStream(t.Context(), bus.EventsStream); err != nil {
		t.Fatal(err)
	}
	w.add(100)
	w.relay(250) // its head is behind the consumer's position at first
	s.got(t, w.want(0))
	w.add(5)
	s.got(t, w.want(0))
}

func TestSurvivesTheLossOfConsumerConnectionAndServer(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	s, filtered := &sink{}, &sink{}
	w.consume(w.config(s))
	cfg := w.config(filtered, "A")
	cfg.Name = "tester-filtered"
	w.consume(cfg)
	check := func() {
		t.Helper()
		w.add(200, "A", "B")
		s.got(t, w.want(0))
		filtered.got(t, w.want(0, "A"))
	}
	check()
	for range 3 {
		if err := w.js.DeleteConsumer(t.Context(), bus.EventsStream, "tester"); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			t.Fatal(err)
		}
		check()
		if err := w.nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		check()
		w.add(300, "A", "B") // under way while the server goes
		w.srv.Restart()
		check()
	}
}

func TestSurvivesTheLossOfALeader(t *testing.T) {
	servers := eventingtest.Cluster(t, 3)
	w := worldOn(t, servers.Conn(), 3)
	w.relay(0)
	s, filtered := &sink{}, &sink{}
	w.consume(w.config(s))
	cfg := w.config(filtered, "A")
	cfg.Name = "tester-filtered"
	w.consume(cfg)
	for range 2 {
		w.add(500, "A", "B")
		s.got(t, w.want(0))
		servers.WaitCurrent(bus.EventsStream)
		w.add(500, "A", "B") // under way while the leader goes
		leader := servers.StreamLeader(bus.EventsStream)
		leader.Stop()
		w.add(100, "A", "B")
		s.got(t, w.want(0))
		filtered.got(t, w.want(0, "A"))
		leader.Start()
		servers.WaitLeader()
	}
}

func TestTransientErrorsAreRetriedForEver(t *testing.T) {
	for name, err := range map[string]error{
		"something is away":     fault.New(fault.Unavailable, "away"),
		"somebody was quicker":  &store.ConflictError{Stream: event.Stream{Type: "job", ID: "j"}, Expected: 3, Actual: 4},
		"somebody was first":    &store.ConflictError{Stream: event.Stream{Type: "job", ID: "j"}, Actual: 1},
		"time ends for a while": context.DeadlineExceeded,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.relay(0)
			tries := 0
			s := &sink{fail: func(e event.Event) error {
				if e.Position == 7 {
					if tries++; tries < 7 {
						return fmt.Errorf("write: %w", err)
					}
				}
				return nil
			}}
			cfg := w.config(s)
			cfg.Attempts = 2
			w.add(20)
			w.consume(cfg)
			s.got(t, w.want(0))
			if n, err := deadletter.Count(t.Context(), w.js); err != nil || n["tester"] != 0 {
				t.Fatal(n, err)
			}
		})
	}
}

// Who makes the dead-letter stream again makes it as the service had it.
func TestALostDeadLetterStreamComesBackWithItsReplicas(t *testing.T) {
	servers := eventingtest.Cluster(t, 3)
	w := worldOn(t, servers.Conn(), 3)
	w.relay(0)
	name := bus.DeadLetterStream("tester")
	if err := w.js.DeleteStream(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	cfg := w.config(&sink{fail: func(event.Event) error { return consumer.Permanent(errors.New("never")) }})
	cfg.Replicas = 3
	w.consume(cfg)
	w.add(1)
	eventingtest.Eventually(t, "the letter in a stream of three servers", func() bool {
		s, err := w.js.Stream(t.Context(), name)
		return err == nil && s.CachedInfo().State.Msgs == 1 && s.CachedInfo().Config.Replicas == 3
	})
}

func TestAPoisonedEventIsDeadLetteredAndTheRestGoesOn(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(300)
	bad := map[int64]error{13: errors.New("cannot"), 14: consumer.Permanent(errors.New("never")), 299: fault.New(fault.Conflict, "lost")}
	tries := map[int64]int{}
	var passed []int64
	s := &sink{fail: func(e event.Event) error {
		if bad[e.Position] != nil {
			tries[e.Position]++
		}
		return bad[e.Position]
	}}
	cfg := w.config(s)
	cfg.DeadLettered = func(_ context.Context, e event.Event, cause error) error {
		if !errors.Is(cause, bad[e.Position]) {
			t.Errorf("%d: %v", e.Position, cause)
		}
		passed = append(passed, e.Position)
		return nil
	}
	c, stop := w.consume(cfg)
	want := slices.DeleteFunc(w.want(0), func(p int64) bool { return bad[p] != nil })
	s.got(t, want)
	eventingtest.Eventually(t, "the position to pass", func() bool { return c.Status().Position == 300 && c.Status().DeadLetters == 3 })
	stop()
	if !slices.Equal(passed, []int64{13, 14, 299}) {
		t.Fatal(passed)
	}
	letters, err := deadletter.List(t.Context(), w.js, deadletter.Filter{Service: "tester"})
	if err != nil || len(letters) != 3 {
		t.Fatal(letters, err)
	}
	for i, p := range passed {
		l, original := letters[i], w.events[p-1]
		if l.Event == nil || l.Event.Position != p || string(l.Data) != string(original.Data) || !strings.Contains(bad[p].Error(), l.Error) ||
			l.Consumer != "tester" || l.Service != "tester" || l.First.IsZero() || l.Last.Before(l.First) {
			t.Errorf("%+v", l)
		}
		for k, v := range original.Header() {
			if !slices.Equal(l.Header[k], v) {
				t.Errorf("header %s is %v, was %v", k, l.Header[k], v)
			}
		}
	}
	if letters[0].Deliveries != 5 || letters[1].Deliveries != 1 {
		t.Fatal(letters[0].Deliveries, letters[1].Deliveries)
	}
	// The same again, as after a crash before the position was stored: not doubled.
	_, stop = w.consume(cfg)
	eventingtest.Eventually(t, "the end", func() bool { return s.last() == 300 && s.count() == 2*len(want) })
	stop()
	if n, err := deadletter.Count(t.Context(), w.js); err != nil || n["tester"] != 3 {
		t.Fatal(n, err)
	}
}

func TestAMessageThatIsNoEventIsADeadLetterAndItsEventComesFromTheLog(t *testing.T) {
	w := newWorld(t)
	stop := w.relay(0)
	w.add(5)
	s := &sink{}
	w.consume(w.config(s))
	s.got(t, w.want(0))
	stop()
	// Somebody publishes where only the relay may.
	if _, err := w.js.PublishMsg(t.Context(), &nats.Msg{Subject: "hodei.events.x.y.Z", Data: []byte{0xff, 0}, Header: nats.Header{"X": {"y"}}}); err != nil {
		t.Fatal(err)
	}
	var letters []deadletter.Letter
	eventingtest.Eventually(t, "a letter", func() bool {
		var err error
		letters, err = deadletter.List(t.Context(), w.js, deadletter.Filter{})
		return err == nil && len(letters) > 0
	})
	if l := letters[0]; l.Event != nil || string(l.Data) != "\xff\x00" || l.Header["X"][0] != "y" || l.Error == "" || l.Type() != "undecodable" {
		t.Fatalf("%+v", l)
	}
	w.add(1) // the true event of that position
	s.got(t, w.want(0))
	if n, _ := deadletter.Count(t.Context(), w.js); n["tester"] != 1 {
		t.Fatal(n)
	}
}

func TestTombstonesAreReadFromTheLog(t *testing.T) {
	w := newWorld(t)
	w.add(20, "A", "B")
	w.events[4].Data = json.RawMessage(`"` + strings.Repeat("x", 2<<20) + `"`)
	w.events[5].Namespace = "no token"
	w.relay(0)
	all, a, b := &sink{}, &sink{}, &sink{}
	w.consume(w.config(all))
	for s, typ := range map[*sink]string{a: "A", b: "B"} {
		cfg := w.config(s, typ)
		cfg.Name = "tester-" + typ
		w.consume(cfg)
	}
	all.got(t, w.want(0))
	a.got(t, w.want(0, "A"))
	b.got(t, w.want(0, "B"))
}

func TestCheckpointsAreLazyAndFollowTheStream(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	var mu sync.Mutex
	var saved []int64
	s := &sink{}
	cfg := w.config(s, "A")
	cfg.CheckpointInterval, cfg.ProbeInterval = 10*time.Millisecond, 20*time.Millisecond
	cfg.Checkpoint = func(_ context.Context, p int64) error {
		mu.Lock()
		defer mu.Unlock()
		saved = append(saved, p)
		return nil
	}
	w.add(100, "A", "B")
	_, stop := w.consume(cfg)
	is := func(p int64) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(saved) > 0 && saved[len(saved)-1] == p
		}
	}
	eventingtest.Eventually(t, "100", is(100))
	w.add(50, "B") // nothing of its types
	eventingtest.Eventually(t, "150", is(150))
	stop()
	if !slices.IsSorted(saved) {
		t.Fatal(saved)
	}
}

func TestASilentConsumerIsMadeAnew(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(10)
	s := &sink{}
	cfg := w.config(s, "JobQueued")
	cfg.ProbeInterval = 50 * time.Millisecond
	c, _ := w.consume(cfg)
	s.got(t, w.want(0))
	// An event that the stream lost before it was delivered: nothing will ever come.
	cons, err := w.js.Consumer(t.Context(), bus.EventsStream, "tester")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.PauseConsumer(t.Context(), bus.EventsStream, "tester", time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	_ = cons
	w.add(10)
	s.got(t, w.want(0))
	w.add(10)
	s.got(t, w.want(0))
	if st := c.Status(); st.DeadLetters != 0 {
		t.Fatal(st)
	}
}

func TestStopEndsRun(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	w.add(1)
	replaced := errors.New("replaced")
	cfg := w.config(&sink{fail: func(event.Event) error { return consumer.Stop(replaced) }})
	c, err := consumer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, replaced) {
		t.Fatal(err)
	}
}

func TestStartErrors(t *testing.T) {
	w := newWorld(t)
	cfg := w.config(&sink{})
	bad := errors.New("no such table")
	tries := 0
	cfg.Start = func(context.Context) (int64, error) {
		if tries++; tries < 3 {
			return 0, fault.New(fault.Unavailable, "away")
		}
		return 0, bad
	}
	c, err := consumer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, bad) || tries != 3 {
		t.Fatal(err, tries)
	}
}

func TestLatency(t *testing.T) {
	w := newWorld(t)
	w.relay(0)
	arrived := make(chan time.Time, 1)
	cfg := w.config(nil)
	cfg.Handle = func(context.Context, []event.Event) error { arrived <- time.Now(); return nil }
	w.consume(cfg)
	var took []time.Duration
	for range 200 {
		began := time.Now()
		w.add(1)
		took = append(took, (<-arrived).Sub(began))
	}
	slices.Sort(took)
	t.Logf("append -> handle: p50 %s p99 %s", took[100], took[198])
	if took[100] > 20*time.Millisecond {
		t.Fatalf("p50 is %s", took[100])
	}
}

func BenchmarkConsumer(b *testing.B) {
	w := newWorld(b)
	w.relay(0)
	w.add(b.N)
	eventingtest.Eventually(b, "the relay", func() bool {
		e, err := bus.LookupEvents(b.Context(), w.js)
		return err == nil && e.Head() == int64(b.N)
	})
	s := &sink{}
	b.ResetTimer()
	w.consume(w.config(s))
	eventingtest.Eventually(b, "all", func() bool { return s.last() == int64(b.N) })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
