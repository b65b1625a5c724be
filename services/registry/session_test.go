package registry_test

import (
	"errors"
	"io"
	"slices"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/service/command"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

func TestRegister(t *testing.T) {
	w := newWorld(t)
	id, other := w.newWorker(1), w.newWorker(1)
	issued, err := w.tokens.IssueToken(t.Context(), &registryv1.IssueTokenRequest{WorkerId: id})
	if err != nil || issued.GetAgentAddress() == "" {
		t.Fatalf("%v %v", issued, err)
	}
	register := func(id, token, nonce string) (string, error) {
		r, err := w.agents.Register(t.Context(), &registryv1.RegisterRequest{WorkerId: id, Token: token, Nonce: nonce, AgentVersion: "v1", Hostname: "h"})
		return r.GetSession(), err
	}
	if _, err := register(other, issued.GetToken(), "n"); !errors.Is(err, fault.Denied) {
		t.Fatalf("another worker's token: %v", err)
	}
	w.wantLast("worker", other, "WorkerRegistrationRejected")
	first, err := register(id, issued.GetToken(), "n")
	if err != nil {
		t.Fatal(err)
	}
	w.wantLast("worker", id, "WorkerStatusChanged:CONNECTING", "WorkerRegistered")
	again, err := register(id, issued.GetToken(), "n")
	if err != nil || again != first {
		t.Fatalf("the same nonce gives %q, %v; want %q", again, err, first)
	}
	w.wantLast("worker", id, "WorkerStatusChanged:CONNECTING", "WorkerRegistered")
	if _, err := register(id, issued.GetToken(), "m"); !errors.Is(err, fault.Denied) {
		t.Fatalf("a used token: %v", err)
	}
	w.wantLast("worker", id, "WorkerRegistered", "WorkerRegistrationRejected")
	if _, err := register(id, "forged", "n"); !errors.Is(err, fault.Denied) {
		t.Fatalf("a forged token: %v", err)
	}
	if _, err := register("no-worker", "forged", "n"); !errors.Is(err, fault.Denied) {
		t.Fatalf("no worker: %v", err)
	}
	if _, err := register(id, issued.GetToken(), ""); !errors.Is(err, fault.Invalid) {
		t.Fatalf("no nonce: %v", err)
	}

	short, err := w.tokens.IssueToken(t.Context(), &registryv1.IssueTokenRequest{WorkerId: other, Ttl: "1ns"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := register(other, short.GetToken(), "n"); !errors.Is(err, fault.Denied) {
		t.Fatalf("an expired token: %v", err)
	}
	for ttl, kind := range map[string]fault.Kind{"-1s": fault.Invalid, "x": fault.Invalid, "1000h": fault.Invalid} {
		if _, err := w.tokens.IssueToken(t.Context(), &registryv1.IssueTokenRequest{WorkerId: other, Ttl: ttl}); !errors.Is(err, kind) {
			t.Errorf("ttl %s: %v", ttl, err)
		}
	}
}

func TestOneJobToItsEnd(t *testing.T) {
	w := newWorld(t)
	a := w.ready(1)
	w.wantLast("worker", a.workerID, "WorkerStatusChanged:CONNECTING", "WorkerRegistered", "WorkerStatusChanged:READY", "WorkerReady", "WorkerReadyForJob")
	stdin := []byte("in")
	id := w.queue(func(s *job.Spec) {
		s.Command, s.Script = nil, &job.Script{Interpreter: "sh", Content: "echo $A"}
		s.Env, s.Stdin = map[string]string{"A": "b"}, stdin
	})
	run := a.run(id)
	if run.GetInterpreter() != "sh" || string(run.GetScript()) != "echo $A" || run.GetEnv()["A"] != "b" || string(run.GetStdin()) != "in" || run.GetCorrelationId() != w.correlation("job", id) {
		t.Fatalf("run %v", run)
	}
	w.wantLast("job", id, "JobAssigned", "JobStatusChanged:RUNNING")
	if e := w.events("job", id)[3]; e.Actor != "worker/"+a.workerID || e.Source != "registry" || e.CausationID != w.events("job", id)[2].ID {
		t.Fatalf("RUNNING is %+v", e.Meta)
	}

	end := exited(id, 1, 3)
	a.result(end)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobExecutionError", "JobStatusChanged:FAILED")
	w.wantLast("worker", a.workerID, "WorkerStatusChanged:BUSY", "WorkerStatusChanged:TERMINATING")
	w.oneAppend(id, 2, a.workerID, 1)
	j := w.job(id)
	if r := j.Result; r == nil || *r.ExitCode != 3 || r.LogRef != job.LogRef(id, 1) || r.Failure.Category != job.CategoryExitCode || r.Usage.MaxRSSBytes != 4096 {
		t.Fatalf("result %+v", j.Result)
	}
	if k := w.worker(a.workerID); k.Cause != worker.CauseDone || k.JobID != "" || k.JobsDone != 1 {
		t.Fatalf("worker %+v", k)
	}
	hear(a, (*registryv1.ConnectResponse).GetTerminate)
	// The agent missed the ack and says it again; then it leaves.
	a.result(end)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobExecutionError", "JobStatusChanged:FAILED")
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Stopping{Stopping: &registryv1.Stopping{Reason: "goodbye: terminated"}}})
	if err := a.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := a.over(); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ends with %v", err)
	}
	w.wantLast("worker", a.workerID, "WorkerStatusChanged:TERMINATING", "WorkerDisconnected")
	left, err := decode[worker.Disconnected](w.events("worker", a.workerID))
	if err != nil || !left.Clean {
		t.Fatalf("%+v %v", left, err)
	}
}

func TestWorkerIsReused(t *testing.T) {
	w := newWorld(t)
	a := w.ready(2)
	for n, want := range [][]string{{"WorkerStatusChanged:READY", "WorkerReadyForJob"}, {"WorkerStatusChanged:BUSY", "WorkerStatusChanged:TERMINATING"}} {
		id := w.queue(nil)
		a.run(id)
		a.result(exited(id, 1, 0))
		hear(a, (*registryv1.ConnectResponse).GetResultAck)
		w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
		w.wantLast("worker", a.workerID, want...)
		w.oneAppend(id, 1, a.workerID, 2-n)
	}
	hear(a, (*registryv1.ConnectResponse).GetTerminate)
}

func TestResultBeforeAccept(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	answer := w.send(w.assign(id, a.workerID), a.epoch)
	hear(a, (*registryv1.ConnectResponse).GetRun)
	a.result(exited(id, 1, 0)) // the ack was lost, say
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	a.answered(answer, true)
	w.wantLast("job", id, "JobAssigned", "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
	w.oneAppend(id, 2, a.workerID, 2)
}

func TestOwnFailureIsRequeued(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(func(s *job.Spec) { s.Retry.MaxAttempts = 2 })
	a.run(id)
	a.result(exited(id, 1, 1))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobExecutionError", "JobRequeued")
	w.oneAppend(id, 2, a.workerID, 2)
	a.run(id)
	// The first attempt's result comes late, and says something else than before.
	late := exited(id, 1, 9)
	a.result(late)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	if d := hear(a, (*registryv1.ConnectResponse).GetDrop); d.GetAttempt() != 1 {
		t.Fatalf("drop %v", d)
	}
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobResultRejected")
	a.result(late)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	hear(a, (*registryv1.ConnectResponse).GetDrop)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobResultRejected")
	a.result(exited(id, 2, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobResultRejected", "JobStatusChanged:SUCCEEDED")
}

func TestResultOfAnotherWorkersJob(t *testing.T) {
	w := newWorld(t)
	a, thief := w.ready(0), w.ready(0)
	id := w.queue(nil)
	a.run(id)
	thief.result(exited(id, 1, 0))
	hear(thief, (*registryv1.ConnectResponse).GetResultAck)
	hear(thief, (*registryv1.ConnectResponse).GetDrop)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobResultRejected")
	thief.result(exited("not-a-job", 1, 0))
	hear(thief, (*registryv1.ConnectResponse).GetResultAck)
	hear(thief, (*registryv1.ConnectResponse).GetDrop)
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:SUCCEEDED")
}

func TestStaleHandOver(t *testing.T) {
	w := newWorld(t)
	a, b := w.ready(0), w.ready(0)
	id := w.queue(nil)
	r := w.assign(id, a.workerID)
	stale := r
	stale.WorkerID, stale.WorkerVersion = b.workerID, w.worker(b.workerID).Version
	b.answered(w.send(stale, b.epoch), false)

	answer := w.send(r, a.epoch)
	hear(a, (*registryv1.ConnectResponse).GetRun)
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Refused{Refused: &registryv1.Refused{JobId: id, Attempt: 1, Reason: "no room"}}})
	if reply := a.answered(answer, false); reply.Reason != "the agent refused: no room" {
		t.Fatalf("%+v", reply)
	}
	// The dispatcher gives the hand-over up while the agent accepts: whoever is first wins.
	answer = w.send(r, a.epoch)
	hear(a, (*registryv1.ConnectResponse).GetRun)
	w.failHandOver(id, a.workerID)
	a.accept(id, 1)
	a.answered(answer, true)
	hear(a, (*registryv1.ConnectResponse).GetDrop)
	w.wantLast("job", id, "JobDispatchFailed", "JobRequeued")
}

func TestSupersededSession(t *testing.T) {
	w := newWorld(t)
	second := w.start()
	a := w.ready(0)
	b := w.connectTo(second, a.workerID, a.session, &registryv1.Hello{})
	if err := a.over(); !errors.Is(err, fault.Precondition) {
		t.Fatalf("the older stream ends with %v", err)
	}
	if b.epoch != a.epoch+1 {
		t.Fatalf("epoch %d after %d", b.epoch, a.epoch)
	}
	w.wantLast("worker", a.workerID, "WorkerReadyForJob", "WorkerReconnected")
	b.run(w.queue(nil))
	b.hangUp()
	w.eventually("worker", a.workerID, "WorkerStatusChanged:BUSY", "WorkerDisconnected")
	if bad, err := w.agents.Connect(t.Context()); err == nil {
		if _, err = bad.Recv(); !errors.Is(err, fault.Denied) {
			t.Fatalf("without a session: %v", err)
		}
	}
}

// An agent that gave a connection up has gone on with another one when the first one's
// Hello arrives, which knows of nothing that it was given since.
func TestDelayedHello(t *testing.T) {
	w := newWorld(t)
	second := w.start()
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	live := w.connections.Load()
	before := w.session(a.workerID)
	jobs, workers := w.types("job", id), w.types("worker", a.workerID)
	for name, tc := range map[string]struct {
		replica    *replica
		connection int64
	}{
		"older":                    {w.replica, live - 1},
		"older, another replica":   {second, live - 1},
		"the same":                 {second, live},
		"not counted, by an agent": {w.replica, 0},
		"senseless":                {w.replica, -1},
	} {
		t.Run(name, func(t *testing.T) {
			late := w.dialIn(tc.replica, a.workerID, a.session, &registryv1.Hello{Connection: tc.connection})
			err := late.over()
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != fault.Precondition || f.Code != "CONNECTION_STALE" {
				t.Errorf("the delayed stream ends with %v", err)
			}
			if now := w.session(a.workerID); now != before {
				t.Errorf("the session was %s and is %s", before, now)
			}
		})
	}
	// The live session has heard of nothing, and goes on.
	a.answered(w.send(command.Request{Kind: command.Ping, WorkerID: a.workerID}, a.epoch), true)
	if j, k := w.types("job", id), w.types("worker", a.workerID); !slices.Equal(j, jobs) || !slices.Equal(k, workers) {
		t.Fatalf("job %v, worker %v; want %v, %v", j, k, jobs, workers)
	}
	a.result(exited(id, 1, 0))
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
	if b := w.connect(a.workerID, a.session, &registryv1.Hello{}); b.epoch != a.epoch+1 {
		t.Fatalf("epoch %d after %d", b.epoch, a.epoch)
	}
}

// An agent from before connections were counted is taken as it comes.
func TestAgentThatDoesNotCount(t *testing.T) {
	w := newWorld(t)
	id := w.newWorker(0)
	secret := w.register(id)
	for epoch := range int64(2) {
		a := w.dialIn(w.replica, id, secret, &registryv1.Hello{})
		if got := hear(a, (*registryv1.ConnectResponse).GetWelcome).GetEpoch(); got != epoch+1 {
			t.Fatalf("epoch %d, want %d", got, epoch+1)
		}
	}
}

// session is the stored session of a worker, in words.
func (w *world) session(workerID string) (row string) {
	w.t.Helper()
	if err := w.store.Pool().QueryRow(w.t.Context(), `SELECT s::text FROM registry.sessions AS s WHERE worker_id = $1`, workerID).Scan(&row); err != nil {
		w.t.Fatal(err)
	}
	return row
}

func TestRegistryRestart(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	w.stop()
	if err := a.over(); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("the stream ends with %v", err)
	}
	if slices.Contains(w.types("worker", a.workerID), "WorkerDisconnected") {
		t.Fatal("a restart of the registry disconnects nobody")
	}
	w.replica = w.start()
	b := w.connect(a.workerID, a.session, &registryv1.Hello{JobId: id, Attempt: 1, Started: true})
	b.result(exited(id, 1, 0))
	hear(b, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobStatusChanged:SUCCEEDED")
}

func TestReconcile(t *testing.T) {
	w := newWorld(t)
	hello := func(id string, attempt int32, started bool) *registryv1.Hello {
		return &registryv1.Hello{JobId: id, Attempt: attempt, Started: started}
	}
	again := func(a *agent, h *registryv1.Hello) *agent {
		t.Helper()
		return w.connect(a.workerID, a.session, h)
	}

	t.Run("accepted, and the permission was never given", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		w.assign(id, a.workerID)
		b := again(a, hello(id, 1, false))
		hear(b, (*registryv1.ConnectResponse).GetStart)
		w.wantLast("job", id, "JobAssigned", "JobStatusChanged:RUNNING")
	})
	t.Run("running in the log, but the agent has not heard", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		a.run(id)
		b := again(a, hello(id, 1, false))
		hear(b, (*registryv1.ConnectResponse).GetStart)
	})
	t.Run("running, and the agent does not have it", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		a.run(id)
		b := again(a, hello("", 0, false))
		w.eventually("job", id, "JobStatusChanged:RUNNING", "JobRequeued")
		w.wantLast("worker", a.workerID, "WorkerReconnected", "WorkerStatusChanged:READY", "WorkerReadyForJob")
		if j := w.job(id); j.Result.Failure.Category != job.CategoryWorkerLost {
			t.Fatalf("%+v", j.Result.Failure)
		}
		b.run(id)
	})
	t.Run("assigned, and the agent does not have it: its command is still to come", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		r := w.assign(id, a.workerID)
		b := again(a, hello("", 0, false))
		answer := w.send(r, b.epoch)
		hear(b, (*registryv1.ConnectResponse).GetRun)
		b.accept(id, 1)
		b.answered(answer, true)
		hear(b, (*registryv1.ConnectResponse).GetStart)
	})
	t.Run("stale", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		w.assign(id, a.workerID)
		w.failHandOver(id, a.workerID)
		b := again(a, hello(id, 1, true))
		hear(b, (*registryv1.ConnectResponse).GetDrop)
		hear(b, (*registryv1.ConnectResponse).GetTerminate)
	})
	t.Run("cancelled meanwhile", func(t *testing.T) {
		a, id := w.ready(0), w.queue(nil)
		a.run(id)
		w.requestCancel(id)
		b := again(a, hello(id, 1, true))
		hear(b, (*registryv1.ConnectResponse).GetCancel)
	})
	t.Run("unknown", func(t *testing.T) {
		a := w.ready(0)
		b := again(a, hello("nonsense", 1, true))
		hear(b, (*registryv1.ConnectResponse).GetDrop)
	})
}

// failHandOver plays the dispatcher that gives a hand-over up.
func (w *world) failHandOver(jobID, workerID string) {
	w.t.Helper()
	j, k := w.job(jobID), w.worker(workerID)
	facts := append([]job.Event{j.FailDispatch("no answer")},
		must[[]job.Event](w)(j.End(workerID, j.Attempt, job.Result{Failure: job.Fail(job.CategoryDispatchFailed, "no answer")}, k.ChangedAt, 0))...)
	kf := must[[]worker.Event](w)(k.Discard(jobID, j.Attempt, worker.CauseHandOver, "no answer"))
	m := meta("dispatcher", w.correlation("job", jobID))
	w.append(jobChange(w, j, m, facts), workerChange(w, k, m, kf))
}

func TestCancel(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	id := w.queue(nil)
	a.run(id)
	w.requestCancel(id)
	if c := hear(a, (*registryv1.ConnectResponse).GetCancel); c.GetJobId() != id || c.GetReason() != "enough" {
		t.Fatalf("cancel %v", c)
	}
	r := exited(id, 1, 0)
	r.ExitCode, r.Signal, r.Category, r.FailureMessage = nil, 15, "CANCELLED", "ended with SIGTERM"
	a.result(r)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobCancelRequested", "JobStatusChanged:CANCELLED")
	w.oneAppend(id, 1, a.workerID, 2)

	// A cancel that comes between the assignment and the command: it never starts.
	id = w.queue(nil)
	cmd := w.assign(id, a.workerID)
	w.requestCancel(id)
	a.answered(w.send(cmd, a.epoch), true)
	hear(a, (*registryv1.ConnectResponse).GetDrop)
	w.wantLast("job", id, "JobAssigned", "JobCancelRequested", "JobStatusChanged:CANCELLED")
	w.wantLast("worker", a.workerID, "WorkerStatusChanged:READY", "WorkerReadyForJob")

	// And between the command and its acceptance.
	id = w.queue(nil)
	answer := w.send(w.assign(id, a.workerID), a.epoch)
	hear(a, (*registryv1.ConnectResponse).GetRun)
	w.requestCancel(id)
	a.accept(id, 1)
	a.answered(answer, true)
	hear(a, (*registryv1.ConnectResponse).GetDrop)
	w.wantLast("job", id, "JobAssigned", "JobCancelRequested", "JobStatusChanged:CANCELLED")

	// An agent that claims a cancel which nobody asked for is not believed.
	id = w.queue(nil)
	a.run(id)
	r = exited(id, 1, 0)
	r.ExitCode, r.Category = nil, "CANCELLED"
	a.result(r)
	hear(a, (*registryv1.ConnectResponse).GetResultAck)
	w.wantLast("job", id, "JobStatusChanged:RUNNING", "JobRequeued")
}

func TestUnknownCommand(t *testing.T) {
	w := newWorld(t)
	a := w.ready(0)
	a.answered(w.send(command.Request{Kind: "DANCE", WorkerID: a.workerID}, a.epoch), false)
	a.answered(w.send(command.Request{Kind: command.Ping, WorkerID: a.workerID}, a.epoch), true)
}
