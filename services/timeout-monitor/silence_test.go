package timeoutmonitor_test

import (
	"context"
	"testing"
	"time"

	"hodei.dev/libs/domain/deadline"
	"hodei.dev/libs/domain/worker"
	"hodei.dev/libs/eventing/bus"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/eventing/eventingtest"
	"hodei.dev/libs/service/aggregate"
)

// beat sends a worker's heartbeats until the test, or the returned function, ends it.
func (w *world) beat(workerID string, every time.Duration) (stop func()) {
	return background(w.t, func(ctx context.Context) error {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for n := int64(1); ; n++ {
			e, err := event.New(aggregate.WorkerStream(workerID), event.Meta{
				Source: "agent", Namespace: event.NoNamespace, CorrelationID: "beat", Actor: "worker/" + workerID,
			}, worker.Heartbeat{Epoch: 1, Sequence: n})
			if err != nil {
				return err
			}
			if err := bus.PublishTelemetry(w.nc, e); err != nil {
				return err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

func heartbeatTimeouts(w *world) int {
	return w.count(`select count(*) from hodei.events where type = 'StateTimedOut' and data::jsonb->>'kind' = 'heartbeat'`)
}

func TestSilenceIsReportedOnce(t *testing.T) {
	w := newWorld(t)
	const threshold = time.Second
	w.cfg.Thresholds.WorkerSilence = short(threshold)
	a, b := w.ready(), w.ready()
	id := w.queue(nil)
	w.assign(id, a)
	w.monitor()
	stopA := w.beat(a, 100*time.Millisecond)
	w.beat(b, 100*time.Millisecond)
	// Both are heard of for longer than the threshold: nothing is said.
	eventingtest.Eventually(t, "heartbeats of more than the threshold", func() bool {
		s, err := eventingtest.JetStream(t, w.nc).Stream(t.Context(), bus.TelemetryStream)
		if err != nil {
			return false
		}
		state := s.CachedInfo().State
		return state.LastTime.Sub(state.FirstTime) > threshold*3/2
	})
	if n := heartbeatTimeouts(w); n != 0 {
		t.Fatalf("%d workers are silent", n)
	}
	stopA()
	stopped := time.Now()
	events := w.until(aggregate.WorkerStream(a), "silence", typed("StateTimedOut"))
	e := find(t, events, typed("StateTimedOut"))
	f := fact[deadline.TimedOut](t, e)
	if f.Kind != deadline.KindHeartbeat || f.State != "BUSY" || f.JobID != id || f.Attempt != 1 || stopped.Sub(f.LastSeen) > time.Second {
		t.Errorf("%+v", f)
	}
	if late := e.Time.Sub(f.LastSeen) - threshold; late < -50*time.Millisecond || late > time.Second {
		t.Errorf("reported %s after it was due", late)
	}
	if e.CorrelationID != "own-"+a || e.Actor != "service/timeout-monitor" {
		t.Errorf("%+v", e.Meta)
	}
	// Its recovery, as registry does it, ends the silence: nothing is said of a worker that goes.
	v := w.worker(a)
	lost, err := v.Lose(f.LastSeen, "silent")
	w.append(workerChange(w, v, "own-"+a)(lost, err))
	eventingtest.Eventually(t, "the monitor to know", func() bool {
		return w.count(`select count(*) from timeout_monitor.deadlines where state = 'TERMINATING'`) == 1
	})
	if n := heartbeatTimeouts(w); n != 1 {
		t.Errorf("reported %d times", n)
	}
}

func TestMassSilenceReportsNobodyForThreeWindows(t *testing.T) {
	w := newWorld(t)
	const threshold = 400 * time.Millisecond
	w.cfg.Thresholds.WorkerSilence = short(threshold)
	for range 4 {
		w.ready()
	}
	began := time.Now()
	w.monitor()
	eventingtest.Eventually(t, "all four", func() bool { return heartbeatTimeouts(w) == 4 })
	if d := time.Since(began); d < 3*threshold {
		t.Errorf("reported after %s", d)
	}
}

func TestSilenceWhileNobodyCanHearDoesNotCount(t *testing.T) {
	server := eventingtest.NATS(t)
	w := newWorldOn(t, server)
	const threshold = time.Second
	w.cfg.Thresholds.WorkerSilence = short(threshold)
	a := w.ready()
	w.monitor()
	stop := w.beat(a, 50*time.Millisecond)
	eventingtest.Eventually(t, "a heartbeat", func() bool {
		s, err := eventingtest.JetStream(t, w.nc).Stream(t.Context(), bus.TelemetryStream)
		return err == nil && s.CachedInfo().State.Msgs > 0
	})
	stop()
	server.Stop()
	gone := time.NewTimer(2 * threshold)
	<-gone.C
	if n := heartbeatTimeouts(w); n != 0 {
		t.Fatalf("%d reports while the stream was away", n)
	}
	server.Start()
	back := time.Now()
	eventingtest.Eventually(t, "the report", func() bool { return heartbeatTimeouts(w) == 1 })
	if d := time.Since(back); d < threshold/2 {
		t.Errorf("reported %s after the stream was back", d)
	}
}
