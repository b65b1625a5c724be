// Command chaos runs the whole platform - the services as processes, a real Postgres,
// real NATS servers, process workers - under load, and breaks it by seeded plans: processes are
// killed and stopped, connections cut, held up and half closed, stores wiped, disks filled,
// agents killed, paused and cut off. After each plan test/check reads the log, the
// stream and the projections, and the journal that the jobs kept outside of the platform says which attempts ran when.
//
// Its last line is
//
//	chaos: plans=N jobs=N faults=N lost=0 doubled=0 stuck=0 leaked=0 seeds=a,b,...
//
// It exits with 1 where anything does not hold, and prints the seed and the story of what broke.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "task":
			os.Exit(task(os.Args[2:]))
		case "sleep":
			d, err := time.ParseDuration(os.Args[len(os.Args)-1])
			if err != nil {
				os.Exit(64)
			}
			time.Sleep(d)
			return
		case "nats":
			if err := natsMain(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "nats:", err)
				os.Exit(1)
			}
			return
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = c.run(ctx)
	}
	if errors.Is(err, errFailed) {
		os.Exit(1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// campaign is a number of plans.
type campaign struct {
	bin, dir, report string
	seeds            []uint64
	lasts            time.Duration
	rate             float64
	parallel, nodes  int
	keep, serial     bool
}

func parse(args []string) (*campaign, error) {
	c := &campaign{}
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.StringVar(&c.bin, "bin", "bin", "take the programs from `DIR`")
	f.StringVar(&c.dir, "dir", os.TempDir(), "work below `DIR`; a failed plan leaves its logs and its journal there")
	f.StringVar(&c.report, "report", "", "write the table of faults into `FILE`, between its markers")
	f.DurationVar(&c.lasts, "duration", 3*time.Minute, "how long the faults of a plan go on")
	f.Float64Var(&c.rate, "rate", 3, "jobs a second")
	f.IntVar(&c.parallel, "parallel", 2, "plans at once")
	f.IntVar(&c.nodes, "nodes", 1, "NATS servers: 1 or 3")
	f.BoolVar(&c.serial, "serial", false, "one fault after the other: what recovery takes where nothing else is broken")
	f.BoolVar(&c.keep, "keep", false, "keep the directories of plans that passed too")
	seeds := f.String("seeds", "", "`SEEDS` separated by commas, of which rN means N random ones; default r1")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if c.nodes != 1 && c.nodes != 3 {
		return nil, fmt.Errorf("-nodes %d: 1 or 3", c.nodes)
	}
	if c.parallel < 1 || c.lasts <= 0 || c.rate <= 0 {
		return nil, errors.New("-parallel, -duration and -rate must be more than 0")
	}
	var err error
	c.seeds, err = parseSeeds(*seeds)
	return c, err
}

func parseSeeds(s string) ([]uint64, error) {
	if s == "" {
		s = "r1"
	}
	var out []uint64
	for one := range strings.SplitSeq(s, ",") {
		if n, random := strings.CutPrefix(one, "r"); random {
			count, err := strconv.Atoi(n)
			if err != nil || count < 1 {
				return nil, fmt.Errorf("-seeds %q: r and a number, such as r3", one)
			}
			for range count {
				out = append(out, uint64(rand.Uint32()))
			}
			continue
		}
		seed, err := strconv.ParseUint(one, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("-seeds %q: a number, or rN", one)
		}
		out = append(out, seed)
	}
	return out, nil
}

// run carries out all plans and prints what came of them.
func (c *campaign) run(ctx context.Context) error {
	bin, err := filepath.Abs(c.bin)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bin, "hodei-agent")); err != nil {
		return fmt.Errorf("%w: run `make build`", err)
	}
	began := time.Now()
	outcomes := make([]outcome, len(c.seeds))
	turns := make(chan struct{}, c.parallel)
	var work sync.WaitGroup
	var printing sync.Mutex // one line at a time
	for n, seed := range c.seeds {
		turns <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		work.Go(func() {
			defer func() { <-turns }()
			log := func(format string, args ...any) {
				printing.Lock()
				defer printing.Unlock()
				fmt.Printf("%s [%d] %s\n", time.Now().Format(clock), seed, fmt.Sprintf(format, args...))
			}
			p := newPlan(seed, c.lasts, c.nodes)
			p.options.bin, p.options.dir = bin, filepath.Join(c.dir, fmt.Sprintf("hodei-chaos-%d-%d", os.Getpid(), seed))
			outcomes[n] = execute(ctx, p, c.rate, c.serial, log)
			outcomes[n].print(log, c.again(seed))
			if !outcomes[n].bad() && !c.keep {
				if err := removeDir(p.options.dir); err != nil {
					log("%v", err)
				}
			}
		})
	}
	work.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.sum(outcomes, time.Since(began))
}

// again is the command that repeats a plan.
func (c *campaign) again(seed uint64) string {
	return fmt.Sprintf("make chaos SEEDS=%d DURATION=%s RATE=%g NODES=%d%s", seed, c.lasts, c.rate, c.nodes, c.more())
}

// more is the rest of a command of make.
func (c *campaign) more() string {
	if c.serial {
		return " CHAOS=-serial"
	}
	return ""
}
