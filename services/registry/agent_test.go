package registry_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/service/command"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// agent is a test's agent: it speaks the protocol, and does nothing by itself,
// so that a test can have it misbehave.
type agent struct {
	w        *world
	t        testing.TB
	workerID string
	session  string
	epoch    int64
	stream   registryv1.WorkerAgentService_ConnectClient
	heard    chan *registryv1.ConnectResponse
	ended    chan error
	hangUp   context.CancelFunc
}

// register plays the provisioner and the agent's start: it returns the session's secret.
func (w *world) register(workerID string) string {
	w.t.Helper()
	token, err := w.tokens.IssueToken(w.t.Context(), &registryv1.IssueTokenRequest{WorkerId: workerID})
	if err != nil {
		w.t.Fatalf("issue a token: %v", err)
	}
	r, err := w.agents.Register(w.t.Context(), &registryv1.RegisterRequest{WorkerId: workerID, Token: token.GetToken(), Nonce: "n1", AgentVersion: "v1", Hostname: "host", Pid: 7})
	if err != nil {
		w.t.Fatalf("register: %v", err)
	}
	return r.GetSession()
}

// connect opens a session on the agent's next connection; the Welcome has been read
// when it returns.
func (w *world) connect(workerID, session string, hello *registryv1.Hello) *agent {
	w.t.Helper()
	return w.connectTo(w.replica, workerID, session, hello)
}

func (w *world) connectTo(r *replica, workerID, session string, hello *registryv1.Hello) *agent {
	w.t.Helper()
	hello.Connection = w.connections.Add(1)
	a := w.dialIn(r, workerID, session, hello)
	a.epoch = hear(a, (*registryv1.ConnectResponse).GetWelcome).GetEpoch()
	return a
}

// dialIn says Hello on a stream of its own and waits for no answer.
func (w *world) dialIn(r *replica, workerID, session string, hello *registryv1.Hello) *agent {
	w.t.Helper()
	a := &agent{w: w, t: w.t, workerID: workerID, session: session, heard: make(chan *registryv1.ConnectResponse, 256), ended: make(chan error, 1)}
	var ctx context.Context
	ctx, a.hangUp = context.WithCancel(withSession(context.WithoutCancel(w.t.Context()), session))
	w.t.Cleanup(a.hangUp)
	var err error
	if a.stream, err = r.agents.Connect(ctx); err != nil {
		w.t.Fatalf("connect: %v", err)
	}
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Hello{Hello: hello}})
	go func() {
		for {
			m, err := a.stream.Recv()
			if err != nil {
				a.ended <- err
				close(a.heard)
				return
			}
			a.heard <- m
		}
	}()
	return a
}

// ready is a worker with an agent that is connected and idle.
func (w *world) ready(jobsPerWorker int) *agent {
	w.t.Helper()
	id := w.newWorker(jobsPerWorker)
	return w.connect(id, w.register(id), &registryv1.Hello{})
}

func (a *agent) say(m *registryv1.ConnectRequest) {
	a.t.Helper()
	if err := a.stream.Send(m); err != nil {
		a.t.Fatalf("the agent cannot speak: %v", err)
	}
}

func (a *agent) accept(jobID string, attempt int32) {
	a.t.Helper()
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Accepted{Accepted: &registryv1.Accepted{JobId: jobID, Attempt: attempt}}})
}

func (a *agent) result(r *registryv1.Result) {
	a.t.Helper()
	a.say(&registryv1.ConnectRequest{Message: &registryv1.ConnectRequest_Result{Result: r}})
}

// hear returns the next message, which must be of the wanted kind.
func hear[M any, P interface {
	*M
	proto.Message
}](a *agent, kind func(*registryv1.ConnectResponse) P) P {
	a.t.Helper()
	select {
	case m, open := <-a.heard:
		if !open {
			a.t.Fatalf("the stream has ended: %v", <-a.ended)
		}
		got := kind(m)
		if got == nil {
			a.t.Fatalf("heard %v", m)
		}
		return got
	case <-time.After(patience):
		a.t.Fatalf("the agent hears nothing")
	}
	return nil
}

// over waits for the stream's end.
func (a *agent) over() error {
	a.t.Helper()
	for {
		select {
		case _, open := <-a.heard:
			if !open {
				return <-a.ended
			}
		case <-time.After(patience):
			a.t.Fatal("the stream does not end")
		}
	}
}

// run hands a fresh job to the agent and has it started.
func (a *agent) run(jobID string) *registryv1.Run {
	a.t.Helper()
	r := a.w.assign(jobID, a.workerID)
	answer := a.w.send(r, a.epoch)
	run := hear(a, (*registryv1.ConnectResponse).GetRun)
	a.accept(run.GetJobId(), run.GetAttempt())
	a.answered(answer, true)
	if s := hear(a, (*registryv1.ConnectResponse).GetStart); s.GetJobId() != jobID || s.GetAttempt() != run.GetAttempt() {
		a.t.Fatalf("start %v", s)
	}
	return run
}

func (a *agent) answered(answer <-chan command.Reply, ok bool) command.Reply {
	a.t.Helper()
	select {
	case r := <-answer:
		if r.OK != ok {
			a.t.Fatalf("reply %+v, want ok=%v", r, ok)
		}
		return r
	case <-time.After(patience):
		a.t.Fatal("no reply")
	}
	return command.Reply{}
}

// exited is the result of a command that ended by itself.
func exited(jobID string, attempt, code int32) *registryv1.Result {
	now := time.Now()
	r := &registryv1.Result{
		JobId: jobID, Attempt: attempt, ExitCode: &code, StartedAt: timestamppb.New(now.Add(-time.Second)), FinishedAt: timestamppb.New(now),
		CpuUserNanos: 1e6, MaxRssBytes: 4096,
	}
	if code != 0 {
		r.Category = "EXIT_CODE"
	}
	return r
}

// logStream is an agent's stream of output.
type logStream struct {
	t      testing.TB
	stream registryv1.WorkerAgentService_SendLogsClient
}

func (a *agent) logsTo(r *replica) *logStream {
	a.t.Helper()
	ctx, cancel := context.WithCancel(withSession(context.WithoutCancel(a.t.Context()), a.session))
	a.t.Cleanup(cancel)
	s, err := r.agents.SendLogs(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return &logStream{a.t, s}
}

func (l *logStream) send(jobID string, attempt int32, chunks ...*registryv1.LogChunk) error {
	return l.stream.Send(&registryv1.SendLogsRequest{JobId: jobID, Attempt: attempt, Chunks: chunks})
}

func (l *logStream) ack() (int64, error) {
	r, err := l.stream.Recv()
	return r.GetAckedSeq(), err
}

// write sends chunks and waits until they are stored.
func (l *logStream) write(jobID string, attempt int32, chunks ...*registryv1.LogChunk) {
	l.t.Helper()
	if err := l.send(jobID, attempt, chunks...); err != nil {
		l.t.Fatal(err)
	}
	seq, err := l.ack()
	if err != nil || seq != chunks[len(chunks)-1].GetSeq() {
		l.t.Fatalf("ack %d, %v", seq, err)
	}
}

func chunk(seq int64, stream, text string) *registryv1.LogChunk {
	return &registryv1.LogChunk{Seq: seq, Stream: stream, Data: []byte(text), Time: timestamppb.Now()}
}

func eof(seq int64) *registryv1.LogChunk {
	return &registryv1.LogChunk{Seq: seq, Eof: true, Time: timestamppb.Now()}
}

func withSession(ctx context.Context, session string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "hodei-session", session)
}
