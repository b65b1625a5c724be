package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func noRoom(after time.Duration) error {
	err := fault.New(fault.Exhausted, "jobs that have not ended fill the platform").WithCode("JOBS_LIMIT", "send it again after a while")
	err.RetryAfter = after
	return err
}

// TestSubmitWaitsForRoom: a server that takes no more jobs is waited for, and the user knows.
func TestSubmitWaitsForRoom(t *testing.T) {
	s := serve(t, newWorld())
	refusals := 3
	s.w.onQueue = func(*world, *schedulerv1.JobSpec) error {
		if refusals--; refusals >= 0 {
			return noRoom(time.Millisecond)
		}
		return nil
	}
	got := s.run("submit", "true")
	if got.want(t, 0, s.w.jobs[0].GetId()+"\n"); len(s.w.jobs) != 1 || strings.Count(got.stderr, "waiting for room") != 1 {
		t.Errorf("%d jobs, stderr %q", len(s.w.jobs), got.stderr)
	}
}

func TestSubmitThatDoesNotWaitForRoom(t *testing.T) {
	s := serve(t, newWorld())
	s.w.onQueue = func(*world, *schedulerv1.JobSpec) error { return noRoom(time.Hour) }
	for _, wait := range []string{"0", "59m"} {
		got := s.run("submit", "--wait-for-room", wait, "true")
		got.want(t, 1, "")
		contains(t, got.stderr, "jobs that have not ended fill the platform", "what to do: send it again after a while")
	}
}

// TestInterruptWhileThereIsNoRoom: a job that waits for room does not exist, so one Ctrl-C is enough.
func TestInterruptWhileThereIsNoRoom(t *testing.T) {
	s := serve(t, newWorld())
	s.w.onQueue = func(*world, *schedulerv1.JobSpec) error { return noRoom(time.Minute) }
	r := s.begin("", "run", "true")
	r.until("the waiting", func() bool { return strings.Contains(r.stderr.String(), "waiting for room") })
	r.signals <- os.Interrupt
	got := r.wait()
	got.want(t, 130, "")
	contains(t, got.stderr, "the job was not queued")
}

// TestSubmitFileSendsAgain: what there was no room for, or whose outcome nobody knows, is
// sent again until it has an answer: each job is queued once, in order.
func TestSubmitFileSendsAgain(t *testing.T) {
	for kind, after := range map[string]string{"exhausted": "1ms", "unavailable": ""} {
		t.Run(kind, func(t *testing.T) {
			s := serve(t, newWorld())
			s.w.onBatch = func(n int) (string, string) {
				if n%7 == 3 && n < 40 {
					return kind, after
				}
				return "", ""
			}
			var file strings.Builder
			for i := range 250 {
				fmt.Fprintf(&file, "{\"name\":\"j%d\",\"command\":[\"true\"]}\n", i)
			}
			got := s.begin(file.String(), "submit", "--file", "-").wait()
			if got.code != 0 || len(s.w.specs) != 250 || strings.Count(got.stdout, "\n") != 250 {
				t.Fatalf("code %d, %d jobs, %d ids, stderr %q", got.code, len(s.w.specs), strings.Count(got.stdout, "\n"), got.stderr)
			}
			names, ids := map[string]string{}, strings.Fields(got.stdout)
			for _, spec := range s.w.specs {
				names[spec.GetId()] = spec.GetName()
			}
			for i, id := range ids {
				if names[id] != fmt.Sprintf("j%d", i) {
					t.Fatalf("line %d has the id of %q", i+1, names[id])
				}
			}
		})
	}
}

// TestSubmitFileGivesUp: a server that never knows is given up, and the lines that have no
// answer are named.
func TestSubmitFileGivesUp(t *testing.T) {
	s := serve(t, newWorld())
	s.w.onBatch = func(n int) (string, string) {
		if n > 1 {
			return "exhausted", "1h"
		}
		return "", ""
	}
	got := s.begin(strings.Repeat("{\"command\":[\"true\"]}\n", 3), "submit", "--file", "-").wait()
	if got.code != 1 || strings.Count(got.stdout, "\n") != 1 {
		t.Errorf("code %d, stdout %q", got.code, got.stdout)
	}
	contains(t, got.stderr, "the lines from 2 on have no answer", "after 1 jobs of standard input: not now")
}

// TestALostAnswerRetriesNothingTwice: the retry is asked for again under the same id.
func TestALostAnswerRetriesNothingTwice(t *testing.T) {
	s := serve(t, aWorld())
	losses := 2
	s.w.onRetry = func(retries int) error {
		if retries != 1 {
			t.Errorf("%d retries", retries)
		}
		if losses--; losses >= 0 {
			return fault.New(fault.Unavailable, "the answer is lost")
		}
		return nil
	}
	s.run("job", "retry", "0198").want(t, 0, "new-one\n")
	if len(s.w.ids) != 1 || s.w.ids[""] {
		t.Errorf("%v", s.w.ids)
	}
}
