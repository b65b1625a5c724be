package projection_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"hodei.dev/libs/eventing/eventingtest"
)

// cutter breaks connections at a commit whose answer then is lost: after the
// server has done it, or before it hears of it.
type cutter struct {
	after, before atomic.Bool
	cuts          atomic.Int64
}

type cutConn struct {
	net.Conn
	c    *cutter
	dead bool
	lose bool
}

func (c *cutConn) Write(b []byte) (int, error) {
	if c.dead {
		return 0, io.ErrClosedPipe
	}
	if bytes.Contains(b, []byte("commit")) {
		if c.c.before.CompareAndSwap(true, false) {
			c.c.cuts.Add(1)
			c.dead = true
			_ = c.Close()
			return 0, io.ErrClosedPipe
		}
		c.lose = c.c.after.CompareAndSwap(true, false)
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lose && n > 0 { // the server has committed
		c.c.cuts.Add(1)
		c.dead, c.lose = true, false
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func TestALostAnswerOfACommitAppliesNothingTwice(t *testing.T) {
	p := newPipeline(t, eventingtest.MigratedPostgres(t))
	s := p.service("board")
	cfg := p.store.Pool().Config()
	c := &cutter{}
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, c: c}, nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s.pool = pool
	s.Projection = p.instance(s)
	p.background(s.Run)
	jobs := streams(3)
	for i := range 6 {
		if i%2 == 0 {
			c.after.Store(true)
		} else {
			c.before.Store(true)
		}
		p.add(20, jobs, "A")
		s.reaches(t, p.head())
	}
	if n := c.cuts.Load(); n != 6 {
		t.Fatalf("%d commits were cut", n)
	}
	if got := s.seen(t); !slices.Equal(got, p.want()) {
		t.Fatal(got)
	}
	if st := s.Status(); st.DeadLetters != 0 {
		t.Fatal(st)
	}
}
