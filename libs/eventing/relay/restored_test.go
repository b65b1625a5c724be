package relay_test

import (
	"errors"
	"testing"

	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/relay"
)

// takeBack makes the log one that was restored from a backup and has gone on since.
func (l *memory) takeBack(to, then int) {
	l.mu.Lock()
	nudge := l.nudge
	l.events, l.nudge = append([]event.Event(nil), l.events[:to]...), nil
	l.mu.Unlock()
	l.add(then)
	l.mu.Lock()
	l.nudge = nudge
	l.mu.Unlock()
}

// A log that was taken back and has grown past the stream again must not go on
// under the positions that are published: the relay that never stopped sees it at
// its next read.
func TestALogTakenBackWhileRunning(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(100)
	cfg := config(t, l, s.Conn())
	r := start(t, cfg)
	r.reaches(t, 100)
	l.takeBack(90, 20)
	cfg.NC.Publish("hodei.nudge.log", []byte("110")) //nolint:errcheck // the sweep finds it too
	var diverged *relay.DivergedError
	eventingtest.Eventually(t, "the difference", func() bool { return errors.As(r.Status().Diverged, &diverged) })
	if p := r.Status().Position; p != 100 || diverged.Position != 100 {
		t.Errorf("published to %d, differs at %d; want nothing above 100", p, diverged.Position)
	}
}

// A relay that starts on such a log finds where the two begin to differ.
func TestWhereADivergenceBegins(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(1000)
	cfg := config(t, l, s.Conn())
	r := start(t, cfg)
	r.reaches(t, 1000)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	l.takeBack(637, 500)
	again, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var diverged *relay.DivergedError
	if err := again.Run(t.Context()); !errors.As(err, &diverged) || diverged.Position != 638 {
		t.Fatalf("got %v, want a difference from 638", err)
	}
}

// A relay that has stopped goes on once the log is the right one again.
func TestARelayLooksAnew(t *testing.T) {
	s := eventingtest.NATS(t)
	l := &memory{}
	l.add(50)
	cfg := config(t, l, s.Conn())
	r := start(t, cfg)
	r.reaches(t, 50)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	whole := l.events
	l.events = l.events[:40]
	if err := r.Run(t.Context()); err == nil {
		t.Fatal("publishes although the log has lost its tail")
	}
	l.events = whole
	again := start(t, cfg)
	again.reaches(t, 50)
}
