package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/test/check"
	"hodei.dev/test/system"
)

// deadLetter is what `dlq list -o json` says of one.
type deadLetter struct {
	ID          string    `json:"id"`
	State       string    `json:"state"`
	Service     string    `json:"service"`
	Fingerprint string    `json:"fingerprint"`
	Error       string    `json:"error"`
	Deliveries  int       `json:"deliveries"`
	By          string    `json:"by"`
	Event       eventView `json:"event"`
}

// poison is a platform whose projection of jobs meets what it cannot handle.
type poison struct {
	*testing.T
	*system.Client
	store *store.Store
}

// Three kinds of poison meet the projection of jobs: a job that a mistake in it cannot
// take, an event whose data was corrupted, and events of a version that no build knows.
// Each holds up its own job and nobody else; an operator finds them by their causes,
// replays, corrects and gives up, and afterwards everything is as the log says.
func TestDeadLettersAreSettled(t *testing.T) {
	s := system.Start(t, system.Options{Workers: 2, Env: []string{"HODEI_RELAY_DEAD_LETTER_ALERT=4"}})
	log, err := store.Open(t.Context(), store.Config{URL: s.PostgresURL, OnCommit: bus.Nudger(s.Conn()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(log.Close)
	p := &poison{T: t, Client: &s.Client, store: log}

	held := gate(filepath.Join(scratch(t), "gate"))
	stuck := submit(t, p.Client, "--max-attempts", "3", "--backoff-initial", "100ms", "--", "sh", "-c", held.wait()+"; exit 1")
	reaches(t, p.Client, stuck, 60*time.Second, "RUNNING")
	var ended []string
	for range 3 {
		ended = append(ended, submit(t, p.Client, "--", "true"))
	}
	for _, id := range ended {
		reaches(t, p.Client, id, 60*time.Second, "SUCCEEDED")
	}
	p.Until(30*time.Second, "the projection has caught up", func() (bool, string) {
		state, _ := p.projected(stuck)
		return state == "RUNNING", state
	})

	fixed := p.mistake(stuck)
	held.open(t)
	reaches(t, p.Client, stuck, 60*time.Second, "FAILED")
	corrupt := p.append(ended[0], 1, `{"reasons": "no worker fits"}`)
	p.append(ended[1], 9, `{"reasons": ["no worker fits"], "weights": [1]}`)
	p.append(ended[2], 9, `{"reasons": [], "weights": []}`)
	letters := p.letters(4)
	p.parkedInOrder(stuck)
	p.alert("DeadLetterAlertRaised")

	// Nobody else waits.
	other := submit(t, p.Client, "--", "true")
	p.Until(30*time.Second, "another job's end is projected", func() (bool, string) {
		state, _ := p.projected(other)
		return state == "SUCCEEDED", state
	})
	if out, errs, code := p.Hodei("doctor", "--quick"); code != 1 || !strings.Contains(out, "scheduler=4") || !strings.Contains(out, "the alert is at 4") {
		t.Errorf("the doctor, exit %d:\n%s%s", code, out, errs)
	}
	p.byCause(letters)

	p.replay(p.letterOf(letters, stuck), fixed)
	p.edit(p.letterOf(letters, ended[0]), corrupt)
	p.discard(p.letterOf(letters, ended[1]), 2)

	p.letters(0)
	p.audited(letters)
	p.alert("DeadLetterAlertCleared")
	well(t, s)
	atRest(t, p.Client, check.Config{PostgresURL: s.PostgresURL, NATS: s.Conn()})
	if n := p.count(`select count(*) from scheduler.parked`); n != 0 {
		t.Errorf("%d events are parked still", n)
	}
	s.StopAll()
}

// projected is what the projection says of a job; nothing where it does not have it yet.
func (p *poison) projected(id string) (state string, version int) {
	p.Helper()
	err := p.store.Pool().QueryRow(p.Context(), `select state, version from scheduler.jobs where id = $1`, id).Scan(&state, &version)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		p.Fatal(err)
	}
	return state, version
}

func (p *poison) count(query string, args ...any) (n int) {
	p.Helper()
	if err := p.store.Pool().QueryRow(p.Context(), query, args...).Scan(&n); err != nil {
		p.Fatal(err)
	}
	return n
}

// mistake makes the projection unable to write one job, until it is fixed.
func (p *poison) mistake(id string) (fix func()) {
	p.Helper()
	exec := func(sql string) {
		p.Helper()
		if _, err := p.store.Pool().Exec(p.Context(), sql); err != nil {
			p.Fatal(err)
		}
	}
	exec(`create function scheduler.mistake() returns trigger language plpgsql as
		$$ begin if new.id = '` + id + `' then raise exception 'column "shade" of job % is missing', new.id; end if; return new; end $$`)
	exec(`create trigger mistake before insert or update on scheduler.jobs for each row execute function scheduler.mistake()`)
	return func() {
		p.Helper()
		exec(`drop trigger mistake on scheduler.jobs; drop function scheduler.mistake()`)
	}
}

// append puts an event that only the projection of jobs takes behind an ended job's
// last one, as a service of another release might.
func (p *poison) append(id string, version int, data string) event.Event {
	p.Helper()
	stream := aggregate.JobStream(id)
	have, err := p.store.Load(p.Context(), stream, 0)
	if err != nil || len(have) == 0 {
		p.Fatal(len(have), err)
	}
	last := have[len(have)-1]
	e := event.Event{
		Meta: last.CausedBy(catalogue.Dispatcher), ID: event.NewID(), Stream: stream, Type: "PlacementDeferred", Version: version, Data: json.RawMessage(data),
	}
	change := store.Change{Stream: stream, Namespace: last.Namespace, Expected: last.StreamVersion, Terminal: true, Events: []event.Event{e}}
	events, err := p.store.Append(p.Context(), store.Append{Changes: []store.Change{change}})
	if err != nil {
		p.Fatal(err)
	}
	return events[0]
}

// letters waits until so many are open.
func (p *poison) letters(n int) (open []deadLetter) {
	p.Helper()
	p.Until(90*time.Second, fmt.Sprintf("%d dead letters are open", n), func() (bool, string) {
		p.JSON(&open, "dlq", "list")
		return len(open) == n, fmt.Sprintf("%+v", open)
	})
	return open
}

func (p *poison) letterOf(letters []deadLetter, job string) deadLetter {
	p.Helper()
	i := slices.IndexFunc(letters, func(l deadLetter) bool { return l.Event.Aggregate == "job/"+job })
	if i < 0 {
		p.Fatalf("no letter of job %s in %+v", job, letters)
	}
	return letters[i]
}

// parkedInOrder checks that what followed the poison of a job waits, all of it, in
// the order of the log.
func (p *poison) parkedInOrder(id string) {
	p.Helper()
	rows, err := p.store.Pool().Query(p.Context(), `select position from scheduler.parked where stream_id = 'job/' || $1::text order by position`, id)
	if err != nil {
		p.Fatal(err)
	}
	parked, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		p.Fatal(err)
	}
	_, version := p.projected(id)
	following, err := p.store.Load(p.Context(), aggregate.JobStream(id), version)
	if err != nil {
		p.Fatal(err)
	}
	var want []int64
	for _, e := range following {
		if slices.Contains(catalogue.Consumed(catalogue.Scheduler), e.Type) {
			want = append(want, e.Position)
		}
	}
	if !slices.Equal(parked, want) || len(want) < 5 {
		p.Errorf("parked are %v, the log has %v behind version %d", parked, want, version)
	}
}

// alert waits for the one alert of its kind.
func (p *poison) alert(eventType string) {
	p.Helper()
	p.Until(30*time.Second, "there is one "+eventType, func() (bool, string) {
		var events []eventView
		p.JSON(&events, "audit", "search", "--type", eventType)
		return len(events) == 1 && strings.Contains(string(events[0].Data), `"scheduler"`), fmt.Sprintf("%+v", events)
	})
}

// byCause checks that letters of one cause are one group, and what one of them says.
func (p *poison) byCause(letters []deadLetter) {
	p.Helper()
	var groups []struct {
		Fingerprint string `json:"fingerprint"`
		Count       int    `json:"count"`
		Service     string `json:"service"`
		Error       string `json:"error"`
	}
	p.JSON(&groups, "dlq", "list", "--group")
	counts := map[string]int{}
	for _, g := range groups {
		counts[g.Error[strings.LastIndex(g.Error, ": ")+2:]] = g.Count
	}
	if len(groups) != 3 || counts["deploy a build that knows it"] != 2 {
		p.Errorf("groups: %+v", groups)
	}
	for _, l := range letters {
		out, errs, code := p.Hodei("dlq", "show", l.ID)
		if code != 0 || !strings.Contains(out, l.Event.ID) || !strings.Contains(out, l.Fingerprint) || l.Service != "scheduler" {
			p.Errorf("show, exit %d:\n%s%s", code, out, errs)
		}
	}
}

// does runs a dlq command and returns the results that it prints, letter by letter.
func (p *poison) does(stdin string, args ...string) (results []string) {
	p.Helper()
	out, errs, code := p.HodeiIn(stdin, append([]string{"-o", "json", "dlq"}, args...)...)
	var outcomes []struct {
		Result string `json:"result"`
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal([]byte(out), &outcomes); code != 0 || err != nil {
		p.Fatalf("dlq %v: exit %d, %v: %s%s", args, code, err, out, errs)
	}
	for _, o := range outcomes {
		results = append(results, o.Result)
	}
	return results
}

// replay fails before the mistake is fixed, and then brings the job up to its log.
func (p *poison) replay(l deadLetter, fixed func()) {
	p.Helper()
	_, job, _ := strings.Cut(l.Event.Aggregate, "/")
	if out, _, code := p.Hodei("dlq", "replay", l.ID); code != 1 || !strings.Contains(out, "FAILED_AGAIN") {
		p.Errorf("a replay before the fix: exit %d, %s", code, out)
	}
	p.letters(4)
	fixed()
	before, _ := p.projected(job)
	if got := p.does("", "replay", "--fingerprint", l.Fingerprint, "--dry-run"); !slices.Equal(got, []string{"WOULD_REPLAY"}) {
		p.Errorf("dry run: %v", got)
	}
	if now, _ := p.projected(job); now != before || p.count(`select count(*) from scheduler.parked where stream_id = $1`, l.Event.Aggregate) == 0 {
		p.Errorf("a dry run has made %s of %s", now, before)
	}
	if got := p.does("", "replay", "--fingerprint", l.Fingerprint, "--reason", "the column is there now"); !slices.Equal(got, []string{"REPLAYED"}) {
		p.Errorf("replay: %v", got)
	}
	if state, _ := p.projected(job); state != "FAILED" {
		p.Errorf("the projection says %s", state)
	}
}

// edit refuses data of another form, and takes what was meant.
func (p *poison) edit(l deadLetter, corrupt event.Event) {
	p.Helper()
	if _, errs, code := p.HodeiIn(string(corrupt.Data), "dlq", "edit", l.ID, "--file", "-"); code != 1 || !strings.Contains(errs, "reasons") {
		p.Errorf("the same data again: exit %d, %s", code, errs)
	}
	meant := `{"reasons": ["no worker fits"]}`
	if got := p.does(meant, "edit", l.ID, "--file", "-", "--dry-run"); !slices.Equal(got, []string{"WOULD_REPLAY"}) {
		p.Errorf("dry run: %v", got)
	}
	if got := p.does(meant, "edit", l.ID, "--file", "-", "--reason", "text instead of a list"); !slices.Equal(got, []string{"REPLAYED"}) {
		p.Errorf("edit: %v", got)
	}
}

// discard gives all letters of one cause up.
func (p *poison) discard(l deadLetter, n int) {
	p.Helper()
	if got := p.does("", "discard", "--fingerprint", l.Fingerprint, "--dry-run"); !slices.Equal(got, slices.Repeat([]string{"WOULD_DISCARD"}, n)) {
		p.Errorf("dry run: %v", got)
	}
	if got := p.does("", "discard", "--fingerprint", l.Fingerprint, "--reason", "of a release that was taken back"); !slices.Equal(got, slices.Repeat([]string{"DISCARDED"}, n)) {
		p.Errorf("discard: %v", got)
	}
}

// audited checks that each decision is an event with the one who made it, and that
// dry runs and refused edits are none.
func (p *poison) audited(letters []deadLetter) {
	p.Helper()
	want := []string{
		"DeadLetterRecorded", "DeadLetterReplayRequested", "DeadLetterRecorded", "DeadLetterReplayRequested", "DeadLetterReplayed", // before the fix, and after it
		"DeadLetterRecorded", "DeadLetterReplayRequested", "DeadLetterReplayed",
		"DeadLetterRecorded", "DeadLetterDiscarded",
		"DeadLetterRecorded", "DeadLetterDiscarded",
	}
	var got []string
	for _, l := range letters {
		var events []eventView
		p.JSON(&events, "audit", "search", "--aggregate", "deadletter/"+l.ID, "--asc", "--limit", "0")
		for _, e := range events {
			got = append(got, e.Type)
			person := strings.HasPrefix(e.Actor, "user/")
			if decided := e.Type == "DeadLetterReplayRequested" || e.Type == "DeadLetterDiscarded"; decided != person || decided && !strings.Contains(string(e.Data), `"by"`) {
				p.Errorf("%s by %q: %s", e.Type, e.Actor, e.Data)
			}
		}
	}
	if !slices.Equal(got, want) {
		p.Errorf("the letters' events: %v", got)
	}
}
