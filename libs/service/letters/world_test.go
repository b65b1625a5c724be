package letters_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/domain/deadletter"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/consumer"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/eventing/projection"
	"hodei.dev/libs/eventing/relay"
	"hodei.dev/libs/eventing/store"
	"hodei.dev/libs/service/aggregate"
	"hodei.dev/libs/service/letters"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }

// fact is what the tests append.
type fact struct {
	N int `json:"n"`
}

func (fact) EventType() string { return "Fact" }
func (fact) EventVersion() int { return 1 }

// world is a log, a relay and NATS, with an operator who decides about letters.
type world struct {
	tb    testing.TB
	srv   *eventingtest.Server
	nc    *nats.Conn
	js    jetstream.JetStream
	store *store.Store
	log   *slog.Logger

	versions map[event.Stream]int
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	w := &world{
		tb: tb, srv: eventingtest.NATS(tb), versions: map[event.Stream]int{},
		log: slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: level})),
	}
	w.nc = w.srv.Conn()
	w.js = eventingtest.JetStream(tb, w.nc)
	var err error
	w.store, err = store.Open(tb.Context(), store.Config{URL: eventingtest.MigratedPostgres(tb), OnCommit: bus.Nudger(w.nc), Log: w.log})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(w.store.Close)
	w.exec(`create schema relay; ` + relay.DDL)
	r, err := relay.New(relay.Config{
		Store: w.store, NC: w.nc, JS: w.js, Log: w.log, DeadLetters: relay.NewDeadLetters(w.store.Pool()),
		Base: func(ctx context.Context) (int64, error) { return consumer.Lowest(ctx, w.store.Pool()) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	w.background(r.Run)
	return w
}

func (w *world) exec(sql string) {
	w.tb.Helper()
	if _, err := w.store.Pool().Exec(w.tb.Context(), sql); err != nil {
		w.tb.Fatal(err)
	}
}

func (w *world) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.tb.Error(err)
		}
	})
	w.tb.Cleanup(stop)
	return stop
}

// add appends one fact to each stream in turn.
func (w *world) add(n int, streams ...event.Stream) {
	w.tb.Helper()
	for i := range n {
		stream := streams[i%len(streams)]
		e, err := event.New(stream, event.Meta{Source: "test", Namespace: "default", CorrelationID: "c", Actor: "service/test"}, fact{N: i})
		if err != nil {
			w.tb.Fatal(err)
		}
		a := store.Append{Changes: []store.Change{{Stream: stream, Namespace: "default", Expected: w.versions[stream], State: "X", Events: []event.Event{e}}}}
		if _, err := w.store.Append(w.tb.Context(), a); err != nil {
			w.tb.Fatal(err)
		}
		w.versions[stream]++
	}
}

func stream() event.Stream { return event.Stream{Type: "job", ID: uuid.NewString()} }

// at is the event of a position.
func (w *world) at(position int64) event.Event {
	w.tb.Helper()
	events, err := w.store.Read(w.tb.Context(), store.ReadOptions{After: position - 1, Limit: 1})
	if err != nil || len(events) != 1 {
		w.tb.Fatal(events, err)
	}
	return events[0]
}

func (w *world) head() int64 {
	w.tb.Helper()
	head, err := w.store.Head(w.tb.Context())
	if err != nil {
		w.tb.Fatal(err)
	}
	return head
}

// letter is the letter of a position for a consumer.
func (w *world) letter(name string, position int64) deadletter.Letter {
	w.tb.Helper()
	l, err := aggregate.LoadDeadLetter(w.tb.Context(), w.store, letters.ID(name, w.at(position).ID))
	if err != nil {
		w.tb.Fatal(err)
	}
	return l
}

// becomes waits for the state of a letter.
func (w *world) becomes(name string, position int64, want deadletter.State) deadletter.Letter {
	w.tb.Helper()
	var l deadletter.Letter
	id := letters.ID(name, w.at(position).ID)
	eventingtest.Eventually(w.tb, fmt.Sprintf("letter of %d to be %s", position, want), func() bool {
		var err error
		l, err = aggregate.LoadDeadLetter(w.tb.Context(), w.store, id)
		return err == nil && l.State == want
	})
	return l
}

// operator decides about a letter.
func (w *world) operator(l deadletter.Letter, decide func(deadletter.Letter) ([]deadletter.Event, error)) {
	w.tb.Helper()
	facts, err := decide(l)
	if err != nil {
		w.tb.Fatal(err)
	}
	meta := event.Meta{Source: "audit", Namespace: "default", CorrelationID: "operation", Actor: "user/ana"}
	change, err := aggregate.DeadLetterChange(l, meta, facts)
	if err != nil {
		w.tb.Fatal(err)
	}
	if _, err := w.store.Append(w.tb.Context(), store.Append{Changes: []store.Change{change}}); err != nil {
		w.tb.Fatal(err)
	}
}

func replay(l deadletter.Letter) ([]deadletter.Event, error) {
	return l.RequestReplay("user/ana", "", nil)
}

func edited(data string) func(deadletter.Letter) ([]deadletter.Event, error) {
	return func(l deadletter.Letter) ([]deadletter.Event, error) {
		return l.RequestReplay("user/ana", "", json.RawMessage(data))
	}
}

func discard(withParked bool) func(deadletter.Letter) ([]deadletter.Event, error) {
	return func(l deadletter.Letter) ([]deadletter.Event, error) {
		return l.Discard("user/ana", "hopeless", withParked)
	}
}

// board is a projection that writes down what it was given.
type board struct {
	*projection.Projection
	w       *world
	letters consumer.Letters

	mu   sync.Mutex
	fail func(e event.Event) error
}

var errPoison = errors.New("cannot be applied")

func (w *world) board() *board {
	w.tb.Helper()
	if err := bus.Ensure(w.tb.Context(), w.js, "board", 1); err != nil {
		w.tb.Fatal(err)
	}
	w.exec(`create schema board; create table board.seen (id bigserial, position bigint unique, n int); ` + projection.DDL("board"))
	b := &board{w: w, letters: letters.New(w.store, "board")}
	b.Projection = b.instance()
	return b
}

func (b *board) instance() *projection.Projection {
	b.w.tb.Helper()
	p, err := projection.New(projection.Config{
		Service: "board", Schema: "board", Types: []string{"Fact"}, Pool: b.w.store.Pool(), Store: b.w.store, NC: b.w.nc, JS: b.w.js, Log: b.w.log,
		Letters: b.letters, RetryDelay: time.Millisecond, ProbeInterval: 100 * time.Millisecond, MaxBatch: 4,
		Apply: b.apply,
		Reset: func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `truncate board.seen`)
			return err
		},
	})
	if err != nil {
		b.w.tb.Fatal(err)
	}
	return p
}

func (b *board) apply(ctx context.Context, tx pgx.Tx, events []event.Event) error {
	b.mu.Lock()
	fail := b.fail
	b.mu.Unlock()
	for _, e := range events {
		if fail != nil {
			if err := fail(e); err != nil {
				return err
			}
		}
		var f fact
		if err := json.Unmarshal(e.Data, &f); err != nil {
			return consumer.Permanent(err)
		}
		if _, err := tx.Exec(ctx, `insert into board.seen (position, n) values ($1, $2)`, e.Position, f.N); err != nil {
			return err
		}
	}
	return nil
}

// poison makes these positions fail, and no others.
func (b *board) poison(positions ...int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = func(e event.Event) error {
		if slices.Contains(positions, e.Position) {
			return errPoison
		}
		return nil
	}
}

// seen are the positions in the order of writing.
func (b *board) seen() []int64 {
	b.w.tb.Helper()
	rows, err := b.w.store.Pool().Query(b.w.tb.Context(), `select position from board.seen order by id`)
	if err != nil {
		b.w.tb.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		b.w.tb.Fatal(err)
	}
	return list
}

func (b *board) parked() (positions []int64) {
	b.w.tb.Helper()
	list, err := b.Parked(b.w.tb.Context(), 100)
	if err != nil {
		b.w.tb.Fatal(err)
	}
	for _, p := range list {
		positions = append(positions, p.Position)
	}
	return positions
}

func (b *board) reaches(position int64) {
	b.w.tb.Helper()
	eventingtest.Eventually(b.w.tb, fmt.Sprintf("board to reach %d", position), func() bool { return b.Status().Position >= position })
}
