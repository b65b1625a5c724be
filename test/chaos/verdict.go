package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/test/check"
)

// verdict is what a plan has shown. Each finding says which aggregate it is about,
// as "job/ID ...", where it is about one.
type verdict struct {
	// lost: accepted and not there, without an end, with an end that its command did not
	// have, or with output missing. doubled: run twice or side by side, or ended twice. stuck: not at
	// rest in time. leaked: workers, processes or directories that are left.
	lost, doubled, stuck, leaked []string
	// violations are all other invariants that do not hold.
	violations []string
	// timeouts counts the deadlines that fired, by state.
	timeouts map[string]int
	events   int
	story    string
}

func (v verdict) bad() bool {
	return len(v.lost)+len(v.doubled)+len(v.stuck)+len(v.leaked)+len(v.violations) > 0
}

func (v verdict) findings() []string {
	return slices.Concat(v.doubled, v.lost, v.stuck, v.leaked, v.violations)
}

// judge looks at everything that a plan has left. restless is what did not come to rest.
func judge(ctx context.Context, p *platform, l *load, faults []*injected, restless []string) (v verdict) {
	v.stuck = restless
	fail := func(what string, err error) {
		if err != nil {
			v.violations = append(v.violations, what+": "+err.Error())
		}
	}
	if len(restless) == 0 {
		fail("the services", p.waitReady(ctx, 90*time.Second))
	}
	for _, f := range faults {
		fail(f.mishap.String(), f.err)
	}
	v.violations = append(v.violations, l.refused...)
	fail("the jobs", v.jobs(ctx, p, l))
	// While all run: a service that stops has last words, which nobody reads any more.
	report, err := p.checkLog(ctx, slices.ContainsFunc(faults, func(f *injected) bool { return f.what == "delete messages" }))
	fail("check", err)
	v.check(report)
	fail("a graceful stop", p.stopServices())
	for _, s := range p.services {
		v.violations = append(v.violations, s.ends()...)
	}
	fail("the log", v.log(ctx, p, faults))
	fail("the workers", v.workers(p, report))
	if v.bad() {
		v.story = story(ctx, p, faults, v)
	}
	return v
}

// check takes in what test/check has found.
func (v *verdict) check(r check.Report) {
	v.events = r.Events
	v.violations = append(v.violations, r.Violations...)
	for _, id := range r.Lost {
		v.lost = append(v.lost, "job/"+id+" has not ended")
	}
	for _, id := range r.Doubled {
		v.doubled = append(v.doubled, "job/"+id+" has ended twice")
	}
	for _, id := range r.Leaked {
		v.leaked = append(v.leaked, "worker/"+id+" is left")
	}
}

// jobs compares what was accepted with what the platform says and with the journal.
func (v *verdict) jobs(ctx context.Context, p *platform, l *load) error {
	var jobs []*schedulerv1.Job
	accepted := l.accepted()
	for id, q := range accepted {
		ask, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := l.insist(ask, func(ctx context.Context) error {
			out, err := l.jobs.GetJob(ctx, &schedulerv1.GetJobRequest{JobId: id})
			jobs = append(jobs, out.GetJob())
			return err
		})
		cancel()
		if err != nil {
			v.lost = append(v.lost, fmt.Sprintf("job/%s (%s) was accepted and is not there: %v", id, q.kind, err))
		}
	}
	// After the answers: an end that one of them tells of is in the journal by now.
	entries, err := p.journal.read()
	if err != nil {
		return err
	}
	logs := registryv1.NewLogServiceClient(l.conn)
	for _, job := range jobs {
		if job != nil {
			v.job(ctx, logs, accepted[job.GetId()].kind, job, entries[job.GetId()])
		}
	}
	return nil
}

func (v *verdict) job(ctx context.Context, logs registryv1.LogServiceClient, name string, job *schedulerv1.Job, entries []entry) {
	id := "job/" + job.GetId() + " (" + name + ")"
	if why := doubled(entries); why != "" {
		v.doubled = append(v.doubled, id+": "+why)
	}
	starts := 0
	for _, e := range entries {
		if e.What != "end" {
			starts++
		}
	}
	k := kindNamed(name)
	if k.atMostOnce && starts > 1 {
		v.doubled = append(v.doubled, fmt.Sprintf("%s must never start twice and has started %d times", id, starts))
	}
	if job.GetFinishedAt() == nil {
		return // found to be stuck already
	}
	if k.ends != nil && !slices.Contains(k.ends, job.GetState()) {
		v.lost = append(v.lost, fmt.Sprintf("%s is %s: %s", id, job.GetState(), job.GetReason()))
		return
	}
	if k.run == nil || job.GetState() != "SUCCEEDED" {
		return
	}
	if code, ok := ended(entries, int(job.GetAttempt())); !ok || code != 0 {
		v.lost = append(v.lost, fmt.Sprintf("%s is SUCCEEDED, but attempt %d did not come to its end by the journal", id, job.GetAttempt()))
	}
	if name == "chatty" {
		if why := missingOutput(ctx, logs, job); why != "" {
			v.lost = append(v.lost, id+": "+why)
		}
	}
}

// missingOutput compares the output of a chatty job with what it has written.
func missingOutput(ctx context.Context, logs registryv1.LogServiceClient, job *schedulerv1.Job) string {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	in, err := logs.ReadLogs(ctx, &registryv1.ReadLogsRequest{JobId: job.GetId(), Attempt: job.GetAttempt()})
	if err != nil {
		return "its output cannot be read: " + err.Error()
	}
	var got bytes.Buffer
	for {
		out, err := in.Recv()
		if err != nil {
			break // the end, or what follows is missing
		}
		for _, c := range out.GetChunks() {
			got.Write(c.GetData())
		}
	}
	var want bytes.Buffer
	for n := range chattyLines {
		want.WriteString(chattyLine(n))
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		return fmt.Sprintf("its output has %d bytes of %d", got.Len(), want.Len())
	}
	return ""
}

// log reads the figures that only the log has, and compares the number of jobs.
func (v *verdict) log(ctx context.Context, p *platform, faults []*injected) error {
	db, err := pgx.Connect(ctx, p.database())
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	v.timeouts = map[string]int{}
	rows, err := db.Query(ctx, `select stream_type || ' ' || coalesce(data->>'state', ''), count(*) from hodei.events where type = 'StateTimedOut' group by 1`)
	if err != nil {
		return err
	}
	var state string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error { v.timeouts[state] = n; return nil }); err != nil {
		return err
	}
	for _, f := range faults {
		if f.workerID == "" {
			continue
		}
		// When the attempt that the worker had then was given up, if it was.
		var at *time.Time
		err := db.QueryRow(ctx, `select min(occurred_at) from hodei.events
			where type = 'JobRequeued' and data->>'worker_id' = $1 and occurred_at >= $2`, f.workerID, f.began).Scan(&at)
		if err != nil {
			return err
		}
		if at != nil {
			f.recovered = at.Sub(f.began)
		}
	}
	return nil
}

// workers finds what workers have left: processes, locks, directories.
func (v *verdict) workers(p *platform, r check.Report) error {
	held, err := p.journal.held()
	if err != nil {
		return err
	}
	for _, id := range held {
		v.leaked = append(v.leaked, "job/"+id+" has ended and a process of it still runs")
	}
	dirs, err := filepath.Glob(filepath.Join(p.stateDir(), "workers", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		id := filepath.Base(dir)
		if info, err := os.Stat(dir); err != nil || !info.IsDir() || r.WorkerStates[id] == "READY" {
			continue
		}
		v.leaked = append(v.leaked, fmt.Sprintf("worker/%s is %s and its directory is left", id, r.WorkerStates[id]))
	}
	_, commands := processesIn(p.stateDir())
	for _, c := range commands {
		if !ofReadyWorker(c, r) {
			v.leaked = append(v.leaked, "a process is left: "+c)
		}
	}
	return nil
}

func ofReadyWorker(command string, r check.Report) bool {
	for id, state := range r.WorkerStates {
		if state == "READY" && strings.Contains(command, id) {
			return true
		}
	}
	return false
}
