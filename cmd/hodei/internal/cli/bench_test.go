package cli

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"hodei.dev/libs/platform/rpc"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestBench(t *testing.T) {
	for name, args := range map[string][]string{
		"callers": nil, "paced": {"--rate", "2000"}, "batches": {"--batch", "30"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, newWorld())
			got := s.run(append([]string{"bench", "--jobs", "100", "--runs", "3", "-o", "json"}, args...)...)
			var out summary
			if err := json.Unmarshal([]byte(got.stdout), &out); err != nil || got.code != 0 {
				t.Fatalf("%v: %+v", err, got)
			}
			if out.Failed != 0 || out.SubmitPerS <= 0 || out.DonePerS <= 0 || len(out.Runs) != 3 || out.DoneMS.P50 <= 0 || out.RunningMS.P99 > out.DoneMS.Max ||
				out.AckMS.P50 > out.AckMS.P90 || out.EventsPerS.Audited >= out.EventsPerS.Appended || out.CPUMSPerJob == nil || *out.CPUMSPerJob != 2 || out.LagEnd < 100 {
				t.Errorf("%s", got.stdout)
			}
			if spec := s.w.specs[0]; spec.GetCommand()[0] != "true" || len(s.w.specs) != 300 {
				t.Errorf("%v, %d jobs", spec, len(s.w.specs))
			}
		})
	}
}

func TestBenchText(t *testing.T) {
	got := serve(t, newWorld()).run("bench", "--jobs", "10", "--runs", "2", "--", "sh", "-c", "true")
	contains(t, got.stdout, "FIGURE", "MEDIAN", "submit jobs/s", "done ms p99", "events/s audited", "cpu ms/job")
}

func TestBenchWithoutAWatchOfAllJobs(t *testing.T) {
	w := newWorld()
	w.noWatch = true
	s := serve(t, w)
	r := s.begin("", "bench", "--jobs", "1", "--runs", "1", "--stall", "10s", "-o", "json")
	r.until("queueing", w.queued)
	w.end("SUCCEEDED", exited(0))
	got := r.wait()
	if got.code != 0 {
		t.Errorf("%+v", got)
	}
	contains(t, got.stderr, "cannot watch all jobs at once")
}

func TestBenchThatStallsEnds(t *testing.T) {
	w := newWorld()
	w.noWatch = true
	got := serve(t, w).run("bench", "--jobs", "2", "--runs", "1", "--stall", "50ms")
	got.want(t, 1, "")
	contains(t, got.stderr, "nothing has happened for 50ms", "hodei status")
}

func TestBenchWithFakeWorkers(t *testing.T) {
	w := newWorld()
	d := &door{removed: make(chan struct{})}
	server, err := rpc.NewServer(rpc.Options{Listen: "127.0.0.1:0", Drain: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	registryv1.RegisterWorkerAgentServiceServer(server.GRPC(), d)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Run(ctx)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	d.addr, w.door = server.Addr(), d
	got := serve(t, w).run("bench", "--jobs", "5", "--runs", "1", "--fake-workers", "3")
	if got.code != 0 {
		t.Errorf("%+v", got)
	}
	if p := w.specs[0].GetPlacement().GetProvider(); p == "" || p != w.specs[0].GetNamespace() {
		t.Errorf("placed on %q", p)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.results > 3 {
		t.Errorf("%d results", d.results)
	}
}
