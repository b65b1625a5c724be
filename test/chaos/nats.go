package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// natsMain is a NATS server in a process of its own, so that it can be killed.
func natsMain(args []string) error {
	f := flag.NewFlagSet("nats", flag.ContinueOnError)
	name := f.String("name", "n1", "server name")
	port := f.Int("port", 0, "clients' port")
	store := f.String("store", "", "JetStream's directory")
	clusterPort := f.Int("cluster-port", 0, "routes' port; 0 = no cluster")
	routes := f.String("routes", "", "the other servers, separated by commas")
	if err := f.Parse(args); err != nil {
		return err
	}
	opts := &server.Options{
		ServerName: *name, Host: "127.0.0.1", Port: *port, JetStream: true, StoreDir: *store, NoSigs: true,
		JetStreamMaxMemory: 256 << 20, JetStreamMaxStore: 2 << 30,
	}
	if *clusterPort != 0 {
		opts.Cluster = server.ClusterOpts{Name: "chaos", Host: "127.0.0.1", Port: *clusterPort, NoAdvertise: true}
		for r := range strings.SplitSeq(*routes, ",") {
			u, err := url.Parse(r)
			if err != nil {
				return err
			}
			opts.Routes = append(opts.Routes, u)
		}
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	ns.ConfigureLogger()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	ns.Start()
	if !ns.ReadyForConnections(time.Minute) {
		return fmt.Errorf("NATS server %s does not come up", *name)
	}
	<-stop
	ns.Shutdown()
	ns.WaitForShutdown()
	return nil
}

// node is one NATS server with its store.
type node struct {
	*process
	port  int
	disk  *disk
	store string
	// routes are the links on which the other servers reach it.
	routes map[string]*link
}

// wipe empties the store of a server that does not run.
func (n *node) wipe() error {
	entries, err := os.ReadDir(n.store)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.store, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// disk is a small file system of its own that can be full. Where none may be mounted it
// is a plain directory, and mounted is false.
type disk struct {
	path    string
	mounted bool
}

const diskBytes = 192 << 20

func newDisk(path string) (*disk, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	err := syscall.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes))
	return &disk{path: path, mounted: err == nil}, nil
}

// fill takes all space that is left.
func (d *disk) fill() error {
	f, err := os.Create(filepath.Join(d.path, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for {
		n, err := f.Write(block)
		switch {
		case err == nil:
		case n == 0 && len(block) > 512:
			block = block[:len(block)/2]
		default:
			return nil // full: that is the purpose
		}
	}
}

func (d *disk) free() error {
	if err := os.Remove(filepath.Join(d.path, "filler")); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (d *disk) unmount() error {
	if !d.mounted {
		return nil
	}
	return syscall.Unmount(d.path, syscall.MNT_DETACH)
}

func (p *platform) makeNodes() error {
	if err := os.MkdirAll(filepath.Join(p.dir, "log"), 0o700); err != nil {
		return err
	}
	clusterPorts := make([]int, p.options.nodes)
	for i := range p.options.nodes {
		name := fmt.Sprintf("n%d", i+1)
		d, err := newDisk(filepath.Join(p.dir, "nats-"+name))
		if err != nil {
			return fmt.Errorf("make the disk of NATS: %w", err)
		}
		n := &node{disk: d, store: filepath.Join(d.path, "jetstream"), routes: map[string]*link{}}
		if err := os.MkdirAll(n.store, 0o700); err != nil {
			return err
		}
		if n.port, err = freePort(); err != nil {
			return err
		}
		if clusterPorts[i], err = freePort(); err != nil {
			return err
		}
		n.process = &process{
			name: "nats-" + name, path: p.taskPath(), log: p.logFile("nats-" + name),
			args: []string{"nats", "--name", name, "--port", fmt.Sprint(n.port), "--store", n.store},
		}
		p.nodes = append(p.nodes, n)
	}
	if err := p.makeRoutes(clusterPorts); err != nil {
		return err
	}
	for _, n := range p.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return nil
}

// makeRoutes joins the nodes to a cluster in which each reaches each other over a link.
func (p *platform) makeRoutes(ports []int) error {
	if len(p.nodes) == 1 {
		return nil
	}
	for i, n := range p.nodes {
		var urls []string
		for j, other := range p.nodes {
			if i == j {
				continue
			}
			k, err := p.link(n.name+"-"+other.name, fmt.Sprintf("127.0.0.1:%d", ports[j]))
			if err != nil {
				return err
			}
			other.routes[n.name] = k
			urls = append(urls, "nats://"+k.Addr())
		}
		n.args = append(n.args, "--cluster-port", fmt.Sprint(ports[i]), "--routes", strings.Join(urls, ","))
	}
	return nil
}

// conn is a connection to NATS for the suite alone.
func (p *platform) conn() (*nats.Conn, error) {
	var urls []string
	for _, n := range p.nodes {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", n.port))
	}
	return nats.Connect(strings.Join(urls, ","), nats.Timeout(5*time.Second))
}
