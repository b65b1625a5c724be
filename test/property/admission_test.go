package property

import (
	"testing"

	"pgregory.net/rapid"

	scheduler "hodei.dev/services/scheduler/core"
)

// TestAdmissionNeverLeaks: whatever happens to the jobs on their way, a reading of the
// log's end leaves nothing counted but what the log has.
func TestAdmissionNeverLeaks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const most = 6
		a := scheduler.NewAdmission(scheduler.Limits{Jobs: most, NamespaceJobs: 4, IntakeBytes: 50})
		type job struct {
			ns    string
			bytes int64
		}
		var flying []job
		head, live := int64(0), map[string]int64{}
		total := func() (n int64) {
			for _, v := range live {
				n += v
			}
			return n
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			ns := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "ns")
			switch rapid.SampledFrom([]string{"admit", "admit", "queued", "failed", "ended", "read"}).Draw(t, "step") {
			case "admit":
				j := job{ns, rapid.Int64Range(1, 30).Draw(t, "bytes")}
				if a.Admit(j.ns, j.bytes) == nil {
					flying = append(flying, j)
				}
			case "queued", "failed":
				if len(flying) == 0 {
					continue
				}
				j := flying[0]
				flying = flying[1:]
				if rapid.Bool().Draw(t, "in the log") {
					head += 2
					live[j.ns]++
					a.Settle(j.ns, j.bytes, head)
				} else {
					a.Settle(j.ns, j.bytes, 0)
				}
			case "ended":
				if live[ns] > 0 {
					head++
					live[ns]--
				}
			case "read":
				reading := map[string]int64{"a": live["a"], "b": live["b"]}
				a.Observe(head, reading)
			}
			if total()+int64(len(flying)) > most {
				t.Fatalf("%d live jobs and %d on their way", total(), len(flying))
			}
		}
		for _, j := range flying {
			a.Settle(j.ns, j.bytes, 0)
		}
		a.Observe(head, map[string]int64{"a": live["a"], "b": live["b"]})
		for n := total(); n < most; n++ {
			ns := "a"
			if live["a"] >= 4 {
				ns = "b"
			}
			if live[ns] >= 4 {
				break
			}
			if err := a.Admit(ns, 1); err != nil {
				t.Fatalf("%d jobs are live and one more is refused: %v", n, err)
			}
			live[ns]++
		}
	})
}
