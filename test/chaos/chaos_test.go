package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestAPlanIsItsSeed(t *testing.T) {
	for seed := range uint64(50) {
		p := newPlan(seed, 3*time.Minute, 1)
		if again := newPlan(seed, 3*time.Minute, 1); !reflect.DeepEqual(p, again) {
			t.Fatalf("seed %d makes two plans:\n%+v\n%+v", seed, p, again)
		}
		if !slices.IsSortedFunc(p.faults, func(a, b mishap) int { return int(a.at - b.at) }) || len(p.faults) < 30 {
			t.Errorf("seed %d: %d faults, in order of time?", seed, len(p.faults))
		}
		for _, f := range p.faults {
			if f.at >= p.lasts || f.lasts > time.Minute {
				t.Errorf("seed %d: %s at %s", seed, f, f.at)
			}
			if f.what == "partition NATS node" {
				t.Errorf("seed %d parts a cluster of one", seed)
			}
		}
	}
}

func TestEverySortOccurs(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(20) {
		for _, f := range newPlan(seed, 3*time.Minute, 3).faults {
			seen[f.what] = true
		}
	}
	for _, s := range sorts {
		if !seen[s.name] {
			t.Errorf("no plan has %q", s.name)
		}
	}
}

// echo is a server that repeats lines, behind a link.
func echo(t *testing.T) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // until the link ends it
				_ = c.Close()
			}()
		}
	}()
	k, err := newLink("echo", dialer(l.Addr().String()), func() []int { return []int{os.Getpid()} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// client is one connection over a link.
type client struct {
	net.Conn
	lines *bufio.Reader
}

func connect(t *testing.T, k *link) *client {
	t.Helper()
	c, err := net.Dial("tcp", k.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{Conn: c, lines: bufio.NewReader(c)}
}

// say sends a line and waits for it to come back.
func (c *client) say(s string, within time.Duration) error {
	if _, err := io.WriteString(c, s+"\n"); err != nil {
		return err
	}
	return c.hear(s, within)
}

func (c *client) hear(s string, within time.Duration) error {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	got, err := c.lines.ReadString('\n')
	if err == nil && got != s+"\n" {
		return errors.New("heard " + got)
	}
	return err
}

// long is enough for anything that happens at once.
const long = 20 * time.Second

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestALinkBreaksInEachWay(t *testing.T) {
	t.Run("cut", func(t *testing.T) {
		k := echo(t)
		c := connect(t, k)
		if err := c.say("a", long); err != nil {
			t.Fatal(err)
		}
		k.Set(cut, 0)
		if err := c.say("b", long); err == nil || timedOut(err) {
			t.Errorf("a connection that was cut: %v", err)
		}
		if err := connect(t, k).say("c", long); err == nil || timedOut(err) {
			t.Errorf("a new one while the link is cut: %v", err)
		}
		k.Set(open, 0)
		if err := connect(t, k).say("d", long); err != nil {
			t.Errorf("a new one afterwards: %v", err)
		}
	})
	t.Run("silent", func(t *testing.T) {
		k := echo(t)
		c := connect(t, k)
		if err := c.say("a", long); err != nil {
			t.Fatal(err)
		}
		k.Set(silent, 0)
		if err := c.say("b", 50*time.Millisecond); !timedOut(err) {
			t.Errorf("nothing comes and nothing ends: %v", err)
		}
		k.Set(open, 0)
		if err := c.hear("b", long); err != nil {
			t.Errorf("what was held back: %v", err)
		}
	})
	t.Run("half open", func(t *testing.T) {
		k := echo(t)
		c := connect(t, k)
		if err := c.say("a", long); err != nil {
			t.Fatal(err)
		}
		k.Set(halfOpen, 0)
		if err := c.say("b", 50*time.Millisecond); !timedOut(err) {
			t.Errorf("nothing comes and nothing ends: %v", err)
		}
		k.Set(open, 0)
		if err := c.hear("b", long); err == nil || timedOut(err) {
			t.Errorf("a connection survived: %v", err)
		}
	})
	t.Run("of one process", func(t *testing.T) {
		k := echo(t)
		c := connect(t, k)
		if err := c.say("a", long); err != nil {
			t.Fatal(err)
		}
		k.SetOnly(silent, 0, 1)
		if err := c.say("b", long); err != nil {
			t.Errorf("another process's link: %v", err)
		}
		k.SetOnly(silent, 0, os.Getpid())
		if err := c.say("c", 50*time.Millisecond); !timedOut(err) {
			t.Errorf("this process's link: %v", err)
		}
	})
}

func TestTheJournalKnowsWhatRanTwice(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	e := func(attempt int, what string) entry { return entry{At: at, Attempt: attempt, What: what} }
	for name, c := range map[string]struct {
		entries []entry
		bad     bool
	}{
		"one after the other": {[]entry{e(1, "start"), e(2, "start"), e(2, "end")}, false},
		"side by side":        {[]entry{e(1, "start"), e(2, "overlap")}, true},
		"the same again":      {[]entry{e(1, "start"), e(1, "end"), e(1, "start")}, true},
		"the wrong way round": {[]entry{e(2, "start"), e(1, "start")}, true},
	} {
		if why := doubled(c.entries); (why != "") != c.bad {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func TestTheLockOutlivesItsFirstHolder(t *testing.T) {
	j, err := newJournal(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, other, err := j.claim("job", 1)
	if err != nil || other != "" {
		t.Fatal(other, err)
	}
	if _, other, err := j.claim("job", 2); err != nil || other != "attempt 1" {
		t.Errorf("the second attempt finds %q: %v", other, err)
	}
	if held, err := j.held(); err != nil || !slices.Equal(held, []string{"job"}) {
		t.Errorf("held: %v %v", held, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if held, err := j.held(); err != nil || len(held) != 0 {
		t.Errorf("held after the end: %v %v", held, err)
	}
}
