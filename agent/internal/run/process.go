package run

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/proctree"
)

// defaultGrace is the time between TERM and KILL.
const defaultGrace = 10 * time.Second

// killPatience is how long the end of a killed tree is waited for: only a process
// stuck inside the kernel takes longer than moments.
const killPatience = 30 * time.Second

// Runner starts attempts. Safe for concurrent use.
type Runner struct {
	trees *proctree.Root
	log   *slog.Logger
}

// New returns a runner whose jobs are trees of root. The root must outlive them:
// closing it ends the main process of each.
func New(root *proctree.Root, log *slog.Logger) *Runner {
	return &Runner{trees: root, log: log}
}

// Capabilities says which limits are enforced here.
func (r *Runner) Capabilities() proctree.Capabilities { return r.trees.Capabilities() }

// Run runs one attempt to its end. The end of ctx cancels it; its cause is the
// reason that the result names.
func (r *Runner) Run(ctx context.Context, spec Spec, sink Sink) Result {
	p := r.Start(spec, sink)
	defer context.AfterFunc(ctx, func() { p.Cancel(context.Cause(ctx).Error()) })()
	<-p.Done()
	return p.Result()
}

// Start starts one attempt. What keeps it from starting is a Result, too: the
// process that is returned is then done already.
func (r *Runner) Start(spec Spec, sink Sink) *Process {
	p := &Process{
		spec: spec, log: r.log.With("job_id", spec.JobID, "attempt", spec.Attempt),
		cancel: make(chan struct{}), kill: make(chan struct{}), ended: make(chan struct{}), done: make(chan struct{}),
		out: newOutput(sink, maxOutput),
	}
	if p.spec.KillGrace == 0 {
		p.spec.KillGrace = defaultGrace
	}
	if refusal := p.start(r.trees); refusal != nil {
		p.cleanUp()
		refusal.failedAt(time.Now())
		p.result = *refusal
		close(p.ended)
		close(p.done)
		return p
	}
	go p.supervise()
	return p
}

// Process is an attempt that runs or has ended. Safe for concurrent use.
type Process struct {
	spec  Spec
	log   *slog.Logger
	out   *output
	dir   workdir
	tree  *proctree.Tree
	cmd   *exec.Cmd
	stdin *os.File // nil: none

	cancelOnce, killOnce sync.Once
	cancel, kill         chan struct{}
	ended, done          chan struct{}

	reason string // why it is cancelled; set before cancel or kill is closed
	result Result // set before done is closed
}

// PID is the process id of the main process; 0 when it never started.
func (p *Process) PID() int {
	if p.cmd == nil || p.cmd.Process == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Cancel asks the job to end: TERM to its process group, KILL to everything of it
// after the grace. It returns at once; later calls change nothing. A job that ends
// by itself before the signal keeps its own result.
func (p *Process) Cancel(reason string) {
	p.cancelOnce.Do(func() {
		p.reason = reason
		close(p.cancel)
	})
}

// Kill ends the job at once, without TERM; also one that is being cancelled. It
// returns at once.
func (p *Process) Kill(reason string) {
	p.Cancel(reason)
	p.killOnce.Do(func() { close(p.kill) })
}

// Ended is closed when nothing of the job runs any more. Its last output may still
// wait for a slow sink: Done comes after it.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Done is closed when the result is ready.
func (p *Process) Done() <-chan struct{} { return p.done }

// Result is how it ended. It blocks until Done.
func (p *Process) Result() Result {
	<-p.done
	return p.result
}

// start prepares and starts the process; a refusal leaves nothing but what cleanUp
// removes.
func (p *Process) start(root *proctree.Root) *Result {
	var err error
	if p.dir, err = makeWorkdir(p.spec); err != nil {
		return infrastructure("WORK_DIR_FAILED", err)
	}
	cwd, refusal := p.dir.cwd(p.spec)
	if refusal != nil {
		return refusal
	}
	env, refusal := environ(p.spec, p.dir, cwd)
	if refusal != nil {
		return refusal
	}
	path := basePath
	if own, ok := p.spec.Env["PATH"]; ok {
		path = own
	}
	file, args, refusal := argv(p.spec, p.dir, cwd, path)
	if refusal != nil {
		return refusal
	}
	if p.tree, err = root.Open(treeName(p.spec)); err != nil {
		return infrastructure("PROCESS_TREE_FAILED", err)
	}
	if p.result.Enforced, err = p.tree.Limit(p.spec.Limits); errors.Is(err, fault.Invalid) {
		return refused(Validation, "LIMIT_INVALID", err.Error(), "correct the job's resources")
	} else if err != nil {
		return infrastructure("LIMIT_FAILED", err)
	}
	p.cmd = &exec.Cmd{Path: file, Args: args, Dir: cwd, Env: env, SysProcAttr: attributes(p.spec)}
	files, err := p.connect()
	if err != nil {
		files.close()
		return infrastructure("PIPE_FAILED", err)
	}
	if err := hideDescriptors(); err != nil {
		files.close()
		return infrastructure("DESCRIPTORS_FAILED", err)
	}
	p.result.StartedAt = time.Now()
	if err := p.tree.Start(p.cmd); err != nil {
		files.close()
		return startFailed(err, args[0], cwd, p.spec)
	}
	noCore(p.cmd.Process.Pid)
	p.result.Started = true
	for _, f := range files.theirs {
		_ = f.Close() // the job has its own copies
	}
	p.out.pump(Stdout, files.ours[0])
	p.out.pump(Stderr, files.ours[1])
	if len(files.ours) > 2 {
		p.stdin = files.ours[2]
		feed(p.stdin, p.spec.Stdin)
	}
	return nil
}

// ends are the two sides of the pipes between the agent and the job.
type ends struct{ ours, theirs []*os.File }

func (e ends) close() {
	for _, f := range append(e.ours, e.theirs...) {
		_ = f.Close()
	}
}

// connect makes the pipes: our ends are stdout, stderr and, when there is one,
// stdin. Without one the job reads the null device.
func (p *Process) connect() (ends, error) {
	var e ends
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			return e, fmt.Errorf("making the pipes of the job: %w", err)
		}
		e.ours, e.theirs = append(e.ours, r), append(e.theirs, w)
	}
	p.cmd.Stdout, p.cmd.Stderr = e.theirs[0], e.theirs[1]
	if p.spec.Stdin == nil {
		return e, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return e, fmt.Errorf("making the pipes of the job: %w", err)
	}
	e.ours, e.theirs = append(e.ours, w), append(e.theirs, r)
	p.cmd.Stdin = r
	return e, nil
}

// supervise follows the process to its end, in a goroutine of its own. It alone
// reaps, so that its signals cannot reach somebody else's process group.
func (p *Process) supervise() {
	exited := make(chan error, 1)
	go func() { exited <- p.tree.WaitMain(context.Background()) }()
	stopped, killAt := p.await(exited)
	p.result.FinishedAt = time.Now()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		p.log.Error("taking the job's exit status", "error", err)
	}
	if stopped != "" {
		p.awaitGroup(killAt)
	}
	p.endTree()
	close(p.ended)
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	p.out.expire()
	p.result.Dropped = p.out.finish()
	p.result.OOMKilled = p.tree.OOMKilled()
	p.result.Usage = usage(p.cmd.ProcessState, p.tree.Usage())
	if ps := p.cmd.ProcessState; ps != nil {
		p.result.classify(ps, stopped, p.reasonGiven(), p.spec)
	} else {
		p.result.ExitCode = NoExitCode
		p.result.set(Infrastructure, "EXIT_STATUS_LOST", "the exit status of the job was lost", "run the job again")
	}
	p.cleanUp()
	close(p.done)
}

// await returns when the main process has ended: why the agent ended it (empty:
// it did not), and when what is left of its group is to be killed.
func (p *Process) await(exited <-chan error) (stopped string, killAt <-chan time.Time) {
	var timeout <-chan time.Time
	if p.spec.Timeout > 0 {
		t := time.NewTimer(time.Until(p.result.StartedAt.Add(p.spec.Timeout)))
		defer t.Stop()
		timeout = t.C
	}
	cancel, kill := p.cancel, p.kill
	for {
		var why string
		select {
		case err := <-exited:
			if err != nil {
				p.log.Error("waiting for the job", "error", err)
			}
			return stopped, killAt
		case <-timeout:
			timeout, why = nil, Timeout
		case <-cancel:
			cancel, why = nil, Cancelled
		case <-kill:
			kill, why = nil, Cancelled
			if p.alive() && stopped == "" {
				stopped = why
			}
			p.endTree()
			continue
		case <-killAt:
			killAt = nil
			p.endTree()
			continue
		}
		if stopped == "" && p.alive() {
			stopped = why
			killAt = time.After(max(p.spec.KillGrace, 0))
			p.terminate()
		}
	}
}

// alive says whether the main process has not ended by itself yet.
func (p *Process) alive() bool {
	_, alive := p.tree.Main()
	return alive
}

// terminate asks the process group to end; a stopped one has to wake up for it.
func (p *Process) terminate() {
	for _, sig := range [...]syscall.Signal{syscall.SIGTERM, syscall.SIGCONT} {
		if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			p.log.Warn("signalling the job's process group", "signal", sig.String(), "error", err)
		}
	}
}

// awaitGroup gives the rest of a group whose leader has ended the rest of its grace.
func (p *Process) awaitGroup(killAt <-chan time.Time) {
	if killAt == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	empty := make(chan error, 1)
	go func() { empty <- p.tree.Wait(ctx) }()
	select {
	case <-empty: //nolint:errcheck // empty or not to be told: the kill that follows finds out
	case <-killAt:
	case <-p.kill:
	}
}

// endTree kills everything of the job.
func (p *Process) endTree() {
	ctx, cancel := context.WithTimeout(context.Background(), killPatience)
	defer cancel()
	if err := p.tree.Kill(ctx); err != nil {
		p.log.Error("ending the job's processes; destroying the worker will", "error", err)
	}
}

// cleanUp removes what the attempt needed. What cannot be removed is the
// operator's to see, not a failure of the job.
func (p *Process) cleanUp() {
	if p.tree != nil {
		if err := p.tree.Remove(); err != nil {
			p.log.Error("removing the job's process tree", "error", err)
		}
	}
	if p.dir.path != "" {
		if err := p.dir.remove(); err != nil {
			p.log.Error("cleaning up after the job", "error", err)
		}
	}
}

// reasonGiven is the reason of Cancel; the channel orders it before this read.
func (p *Process) reasonGiven() string {
	select {
	case <-p.cancel:
		return p.reason
	default:
		return ""
	}
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// treeName names the tree of an attempt; ids of jobs may hold more than names may.
func treeName(spec Spec) string {
	id := notInNames.ReplaceAllString(spec.JobID, "_")
	if len(id) > 100 {
		id = id[:100]
	}
	return strings.Join([]string{"job", id, strconv.Itoa(spec.Attempt)}, "-")
}
