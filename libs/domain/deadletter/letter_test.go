package deadletter_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/domain/fault"
)

var (
	recorded = deadletter.Recorded{
		Subject:  deadletter.Subject{Service: "scheduler", Consumer: "scheduler", Kind: deadletter.KindEvent, Position: 12, OriginalType: "JobQueued", Parks: true},
		Error:    `job "a": no 17`,
		Attempts: 5,
	}
	edit = json.RawMessage(`{"a":1}`)
)

// life applies steps to a new letter; each must be legal.
func life(t *testing.T, steps ...func(deadletter.Letter) ([]deadletter.Event, error)) deadletter.Letter {
	t.Helper()
	l := deadletter.Letter{ID: "L"}
	for _, step := range steps {
		events, err := step(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			l = l.Evolve(e, deadletter.At{Version: l.Version + 1, Time: time.Unix(int64(l.Version+1), 0)})
		}
	}
	return l
}

func record(l deadletter.Letter) ([]deadletter.Event, error) { return l.Record(recorded), nil }

func replay(l deadletter.Letter) ([]deadletter.Event, error) {
	return l.RequestReplay("user/ana", "fixed", nil)
}

func edited(l deadletter.Letter) ([]deadletter.Event, error) {
	return l.RequestReplay("user/ana", "", edit)
}

func succeed(l deadletter.Letter) ([]deadletter.Event, error) { return l.Succeed(3) }

func discard(l deadletter.Letter) ([]deadletter.Event, error) {
	return l.Discard("user/bob", "hopeless", false)
}

func TestLifeOfALetter(t *testing.T) {
	l := life(t, record)
	if l.State != deadletter.StateDead || l.Attempts != 5 || l.Position != 12 || l.Fingerprint == "" || !l.State.Open() {
		t.Fatalf("%+v", l)
	}
	if l := life(t, record, record); l.Version != 1 {
		t.Fatalf("recorded twice: %+v", l)
	}
	l = life(t, record, replay, record)
	if l.State != deadletter.StateDead || l.Replays != 1 || l.Attempts != 10 || l.RecordedAt != time.Unix(1, 0) {
		t.Fatalf("failed again: %+v", l)
	}
	l = life(t, record, edited, succeed)
	if l.State != deadletter.StateReplayed || string(l.Edited) != string(edit) || l.Unparked != 3 || l.By != "user/ana" || l.State.Open() {
		t.Fatalf("replayed: %+v", l)
	}
	if l = life(t, record, edited, succeed, record); l.State != deadletter.StateDead {
		t.Fatalf("met again by a rebuild: %+v", l)
	}
	if l = life(t, record, discard, record); l.State != deadletter.StateDiscarded || l.By != "user/bob" {
		t.Fatalf("a discard stands: %+v", l)
	}
}

func TestRefusals(t *testing.T) {
	of := func(change func(*deadletter.Recorded)) deadletter.Letter {
		r := recorded
		change(&r)
		return life(t, func(l deadletter.Letter) ([]deadletter.Event, error) { return l.Record(r), nil })
	}
	for name, c := range map[string]struct {
		letter deadletter.Letter
		step   func(deadletter.Letter) ([]deadletter.Event, error)
		want   string
	}{
		"replayed twice":        {life(t, record, replay), replay, "is REPLAYING and cannot become REPLAYING"},
		"discarded in a replay": {life(t, record, replay), discard, "cannot become DISCARDED"},
		"replay of a discarded": {life(t, record, discard), replay, "cannot become REPLAYING"},
		"done without a replay": {life(t, record), succeed, "cannot become REPLAYED"},
		"unreadable":            {of(func(r *deadletter.Recorded) { r.Kind = deadletter.KindUnreadable }), replay, "is no event"},
		"unpublishable":         {of(func(r *deadletter.Recorded) { r.Kind = deadletter.KindUnpublishable }), replay, "tombstone"},
		"edited for the audit":  {of(func(r *deadletter.Recorded) { r.Service = "audit" }), edited, "forged"},
	} {
		if _, err := c.step(c.letter); !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	flat := of(func(r *deadletter.Recorded) { r.Parks = false })
	if _, err := flat.Discard("user/bob", "", true); !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "with_parked") {
		t.Error(err)
	}
}

func TestFingerprint(t *testing.T) {
	for text, want := range map[string]string{
		`job 0190a1b2-0000-7000-8000-0123456789ab at position 17: cannot unmarshal "x\"y" into 'spec'`: `job <id> at position <n>: cannot unmarshal <text> into <text>`,
		"digest 9f86d081884c7d65 is not 0xFF;\n\tafter 1.5s":                                           "digest <hex> is not <hex>; after <n>s",
		"": "",
	} {
		if got := deadletter.Normalise(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	a, b := deadletter.Fingerprint("c", "T", "no job 1"), deadletter.Fingerprint("c", "T", "no job 22")
	if a != b || a == deadletter.Fingerprint("c", "U", "no job 1") || a == deadletter.Fingerprint("c", "T", "no worker 1") {
		t.Error("fingerprints do not tell causes apart")
	}
}

func FuzzFingerprint(f *testing.F) {
	for _, s := range []string{`a "b\" c`, "0x1f 1,2:3", "\xff'", "<n>12<text>", `"1"2"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		once := deadletter.Normalise(text)
		if twice := deadletter.Normalise(once); twice != once {
			t.Fatalf("%q, then %q", once, twice)
		}
		if !utf8.ValidString(once) || strings.ContainsAny(once, "\n\t0123456789") {
			t.Fatalf("%q", once)
		}
		if len(deadletter.Fingerprint("c", "t", text)) != 12 {
			t.Fatal("length")
		}
		events := deadletter.Letter{}.Record(deadletter.Recorded{Error: text})
		if e := events[0].(deadletter.Recorded); len(e.Error) > deadletter.MaxError || !utf8.ValidString(e.Error) {
			t.Fatal(len(e.Error))
		}
	})
}
