package guard_test

import (
	"encoding/binary"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hodei.dev/agent/internal/guard"
)

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var asleep atomic.Int64 // what the machine was suspended for
		now := func() time.Duration { return time.Since(began) + time.Duration(asleep.Load()) }
		r, w := io.Pipe()
		var mu sync.Mutex // guards killed
		var killed []string
		done := make(chan error, 1)
		go func() {
			done <- guard.Watch(r, now, func(reason string) {
				mu.Lock()
				defer mu.Unlock()
				killed = append(killed, reason)
			})
		}()
		until := func(limit time.Duration) {
			if _, err := w.Write(binary.BigEndian.AppendUint64(nil, uint64(limit))); err != nil {
				t.Fatal(err)
			}
		}
		step := func(d time.Duration, want int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(killed) != want {
				t.Fatalf("killed %q, want %d times", killed, want)
			}
		}
		step(time.Hour, 0) // nothing runs
		until(now() + 30*time.Second)
		step(20*time.Second, 0)
		until(now() + 30*time.Second) // renewed
		step(29*time.Second, 0)
		step(2*time.Second, 1)
		step(time.Hour, 1) // once is enough
		until(now() + 30*time.Second)
		asleep.Add(int64(time.Hour))
		step(2*time.Second, 2) // soon after the machine woke up
		until(now() + 30*time.Second)
		until(0)
		step(time.Hour, 2)
		_ = w.Close()
		step(0, 3)
		if err := <-done; err != nil || !strings.Contains(killed[2], "has ended") {
			t.Errorf("%v, %q", err, killed)
		}
	})
}
