package chassis_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// proxy stands between a service and Postgres, so that a test can take it away.
type proxy struct {
	dir      string
	mu       sync.Mutex // guards what follows
	listener net.Listener
	conns    map[net.Conn]struct{}
	copying  sync.WaitGroup
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{dir: dir, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		p.close()
		_ = os.RemoveAll(dir)
	})
	return p
}

// sockets are where the server of a URL listens, and where the proxy does.
func (p *proxy) sockets(t *testing.T, raw string) (server, own string, through *url.URL) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	port := q.Get("port")
	if port == "" {
		port = "5432"
	}
	name := ".s.PGSQL." + port
	server = filepath.Join(q.Get("host"), name)
	q.Set("host", p.dir)
	u.RawQuery = q.Encode()
	return server, filepath.Join(p.dir, name), u
}

// url is the database's through the proxy.
func (p *proxy) url(t *testing.T, raw string) string {
	t.Helper()
	_, _, u := p.sockets(t, raw)
	return u.String()
}

func (p *proxy) open(t *testing.T, raw string) {
	t.Helper()
	server, own, _ := p.sockets(t, raw)
	if err := os.Remove(own); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", own)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.copying.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.copying.Go(func() { p.carry(c, server) })
		}
	})
}

func (p *proxy) carry(client net.Conn, server string) {
	defer client.Close()
	up, err := net.Dial("unix", server)
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	p.conns[client], p.conns[up] = struct{}{}, struct{}{}
	p.mu.Unlock()
	p.copying.Go(func() {
		_, _ = io.Copy(up, client)
		_ = up.Close()
	})
	_, _ = io.Copy(client, up)
}

// close takes Postgres away: no new connection, and none of the old ones.
func (p *proxy) close() {
	p.mu.Lock()
	if p.listener != nil {
		_ = p.listener.Close()
	}
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
	p.mu.Unlock()
	p.copying.Wait()
}
