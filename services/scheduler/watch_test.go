package scheduler_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/eventing/event"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

// watch follows a job in the background; the channel ends with the stream.
func (w *world) watch(id string) (<-chan string, *error) {
	w.t.Helper()
	stream, err := w.jobs.WatchJob(w.as(), &schedulerv1.WatchJobRequest{JobId: id})
	if err != nil {
		w.t.Fatal(err)
	}
	states, ended := make(chan string, 100), new(error)
	go func() {
		defer close(states)
		for {
			out, err := stream.Recv()
			if err != nil {
				*ended = err
				return
			}
			states <- out.GetJob().GetState()
		}
	}()
	return states, ended
}

func next(t *testing.T, states <-chan string) string {
	t.Helper()
	select {
	case s := <-states:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
		return ""
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	worker := event.NewID()
	id := w.queue(command("true")).GetId()
	states, ended := w.watch(id[:30])
	steps := []struct {
		do   func()
		want string
	}{
		{func() {}, "PENDING"},
		{func() { w.assign(id, worker) }, "ASSIGNED"},
		{func() { w.run(id, worker) }, "RUNNING"},
		{func() { w.end(id, worker, 0) }, "SUCCEEDED"},
	}
	for _, s := range steps {
		s.do()
		if got := next(t, states); got != s.want {
			t.Fatalf("got %s, want %s", got, s.want)
		}
	}
	if got := next(t, states); got != "" || !errors.Is(*ended, io.EOF) {
		t.Errorf("after the end: %q, %v", got, *ended)
	}
	// A job that has ended is sent once.
	states, ended = w.watch(id)
	if got := next(t, states); got != "SUCCEEDED" {
		t.Errorf("got %s", got)
	}
	if next(t, states); !errors.Is(*ended, io.EOF) {
		t.Errorf("ended with %v", *ended)
	}
	states, ended = w.watch(event.NewID())
	if next(t, states); !errors.Is(*ended, fault.NotFound) {
		t.Errorf("watch of an unknown job: %v", *ended)
	}
}

// Whatever happens to NATS meanwhile, the terminal state comes, and no state that
// came before it in the log comes after it.
func TestWatchSurvivesNATS(t *testing.T) {
	w := newWorld(t)
	worker := event.NewID()
	const jobs = 20
	watches := map[string]<-chan string{}
	for range jobs {
		id := w.queue(command("true")).GetId()
		watches[id], _ = w.watch(id)
		if got := next(t, watches[id]); got != "PENDING" {
			t.Fatal(got)
		}
	}
	w.nats.Stop()
	for id := range watches {
		w.assign(id, worker)
		w.run(id, worker)
	}
	w.nats.Start()
	for id := range watches {
		w.end(id, worker, 0)
	}
	order := []string{"ASSIGNED", "RUNNING", "SUCCEEDED", ""}
	for id, states := range watches {
		at := -1
		for at < 3 {
			s := next(t, states)
			i := slices.Index(order, s)
			if i <= at {
				t.Fatalf("job %s: %q after %q", id, s, order[max(at, 0)])
			}
			at = i
		}
	}
}

// Jobs that change while their watch is being opened lose nothing.
func TestWatchFromTheFirstMoment(t *testing.T) {
	w := newWorld(t)
	worker := event.NewID()
	for range 50 {
		id := w.queue(command("true")).GetId()
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			w.decide(id, func(j job.Job) ([]job.Event, error) { return j.Assign(event.NewID(), worker, 1, "it fits") })
			w.run(id, worker)
			w.end(id, worker, 1)
		}()
		states, _ := w.watch(id)
		last := ""
		for s := range states {
			last = s
		}
		<-moved
		if last != "FAILED" {
			t.Fatalf("the last state was %q", last)
		}
	}
}

func TestQueueJobs(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(w.as())
	defer cancel()
	stream, err := w.jobs.QueueJobs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	given := event.NewID()
	messages := [][]*schedulerv1.JobSpec{
		{command("true"), {Command: []string{"x"}, Timeout: "soon"}, {Command: []string{"a"}, CorrelationId: "mine"}},
		{},
		{{Id: given, Command: []string{"b"}}, {Id: given, Command: []string{"b"}}, {Id: given, Name: "b", Command: []string{"c"}}, command("after")},
	}
	for range 300 {
		messages = append(messages, []*schedulerv1.JobSpec{command("true"), command("false")})
	}
	go func() {
		for _, specs := range messages {
			if stream.Send(&schedulerv1.QueueJobsRequest{Specs: specs}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	var results []*schedulerv1.QueueJobsResult
	for n := 0; ; n++ {
		out, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(out.GetResults()) != len(messages[n]) {
			t.Fatalf("message %d has %d answers of %d", n, len(out.GetResults()), len(messages[n]))
		}
		results = append(results, out.GetResults()...)
	}
	if len(results) != 607 {
		t.Fatalf("%d answers", len(results))
	}
	refused := map[int]bool{1: true, 5: true}
	correlations := map[string]bool{}
	for i, r := range results {
		if r.GetIndex() != int64(i) || (r.GetError() != "") != refused[i] || (r.GetJobId() == "") != refused[i] {
			t.Errorf("answer %d: %v", i, r)
		}
		if i < 20 && !refused[i] && i != 4 {
			correlations[w.get(r.GetJobId()).GetCorrelationId()] = true
		}
	}
	if !correlations["mine"] || len(correlations) != 17 {
		t.Errorf("%d correlation ids: %v", len(correlations), correlations)
	}
	if !results[4].GetExisted() || results[3].GetExisted() || results[3].GetJobId() != given {
		t.Errorf("the same id twice: %v, %v", results[3], results[4])
	}
	if got := w.get(results[2].GetJobId()); got.GetQueuedBy() != "user/ann" {
		t.Errorf("queued by %s", got.GetQueuedBy())
	}
}

func BenchmarkQueueJobs(b *testing.B) {
	w := newWorld(b)
	stream, err := w.jobs.QueueJobs(w.as())
	if err != nil {
		b.Fatal(err)
	}
	const together = 100
	b.ResetTimer()
	go func() {
		for sent := 0; sent < b.N; sent += together {
			in := &schedulerv1.QueueJobsRequest{}
			for range min(together, b.N-sent) {
				in.Specs = append(in.Specs, &schedulerv1.JobSpec{Name: "bench", Command: []string{"true"}, Labels: map[string]string{"a": "b"}})
			}
			if stream.Send(in) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
}

func TestWatchJobsSendsTheChangesOfANamespace(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(w.as(), 30*time.Second)
	defer cancel()
	stream, err := w.jobs.WatchJobs(ctx, &schedulerv1.WatchJobsRequest{Namespace: "here"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || len(first.GetChanges()) != 0 {
		t.Fatalf("the first message: %v %v", first, err)
	}
	elsewhere := w.queue(&schedulerv1.JobSpec{Command: []string{"true"}, Namespace: "there"})
	w.assign(elsewhere.GetId(), event.NewID())
	mine := w.queue(&schedulerv1.JobSpec{Command: []string{"true"}, Namespace: "here"})
	worker := event.NewID()
	w.assign(mine.GetId(), worker)
	w.run(mine.GetId(), worker)
	w.end(mine.GetId(), worker, 0)
	var states []string
	for len(states) < 3 {
		got, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", states, err)
		}
		for _, c := range got.GetChanges() {
			if c.GetJobId() != mine.GetId() {
				t.Errorf("a change of %s, which is elsewhere", c.GetJobId())
			}
			states = append(states, c.GetState())
		}
	}
	if want := "ASSIGNED RUNNING SUCCEEDED"; strings.Join(states, " ") != want {
		t.Errorf("%v, want %s", states, want)
	}
}
