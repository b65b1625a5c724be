package cli

import (
	"context"
	"math"
	"slices"
	"time"

	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// percentiles of latencies, in milliseconds.
type percentiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// eventRates are events a second, from the first job queued to the last one done.
type eventRates struct {
	Appended  float64 `json:"appended"`
	Published float64 `json:"published"`
	Audited   float64 `json:"audited"`
}

// figuresOfRun are what one run measured.
type figuresOfRun struct {
	SubmitPerS float64     `json:"submit_per_s"`
	DonePerS   float64     `json:"done_per_s"`
	AckMS      percentiles `json:"ack_ms"`
	RunningMS  percentiles `json:"running_ms"`
	DoneMS     percentiles `json:"done_ms"`
	EventsPerS eventRates  `json:"events_per_s"`
	// Failed did not end as SUCCEEDED, or were refused.
	Failed int `json:"failed"`
	// LagEnd are events that are appended, but not in the audit log, when the last job is done.
	LagEnd int64 `json:"lag_end"`
	// CPUMSPerJob is the services' processor time; null where they do not tell.
	CPUMSPerJob *float64 `json:"cpu_ms_per_job"`
}

func percentilesOf(latencies []time.Duration) percentiles {
	if len(latencies) == 0 {
		return percentiles{}
	}
	slices.Sort(latencies)
	at := func(p float64) float64 {
		i := int(math.Ceil(p*float64(len(latencies)))) - 1
		return round(float64(latencies[max(0, i)].Nanoseconds()) / 1e6)
	}
	return percentiles{P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
}

// round keeps three digits after the point: more is noise.
func round(v float64) float64 { return math.Round(v*1000) / 1000 }

func median(runs []*figuresOfRun, of func(*figuresOfRun) float64) float64 {
	values := valuesOf(runs, of)
	n := len(values)
	return round((values[(n-1)/2] + values[n/2]) / 2)
}

// spread is the least and the most of a figure.
func spread(runs []*figuresOfRun, of func(*figuresOfRun) float64) (least, most float64) {
	values := valuesOf(runs, of)
	return values[0], values[len(values)-1]
}

func valuesOf(runs []*figuresOfRun, of func(*figuresOfRun) float64) []float64 {
	values := make([]float64, len(runs))
	for i, r := range runs {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values
}

// medians are the medians of each figure; failures are summed up: none may hide.
func medians(runs []*figuresOfRun) figuresOfRun {
	of := func(get func(*figuresOfRun) float64) float64 { return median(runs, get) }
	latency := func(get func(*figuresOfRun) percentiles) percentiles {
		return percentiles{
			P50: of(func(f *figuresOfRun) float64 { return get(f).P50 }),
			P90: of(func(f *figuresOfRun) float64 { return get(f).P90 }),
			P99: of(func(f *figuresOfRun) float64 { return get(f).P99 }),
			Max: of(func(f *figuresOfRun) float64 { return get(f).Max }),
		}
	}
	out := figuresOfRun{
		SubmitPerS: of(func(f *figuresOfRun) float64 { return f.SubmitPerS }),
		DonePerS:   of(func(f *figuresOfRun) float64 { return f.DonePerS }),
		AckMS:      latency(func(f *figuresOfRun) percentiles { return f.AckMS }),
		RunningMS:  latency(func(f *figuresOfRun) percentiles { return f.RunningMS }),
		DoneMS:     latency(func(f *figuresOfRun) percentiles { return f.DoneMS }),
		EventsPerS: eventRates{
			Appended:  of(func(f *figuresOfRun) float64 { return f.EventsPerS.Appended }),
			Published: of(func(f *figuresOfRun) float64 { return f.EventsPerS.Published }),
			Audited:   of(func(f *figuresOfRun) float64 { return f.EventsPerS.Audited }),
		},
		LagEnd: int64(of(func(f *figuresOfRun) float64 { return float64(f.LagEnd) })),
	}
	told := slices.DeleteFunc(slices.Clone(runs), func(f *figuresOfRun) bool { return f.CPUMSPerJob == nil })
	if len(told) > 0 {
		cpu := median(told, func(f *figuresOfRun) float64 { return *f.CPUMSPerJob })
		out.CPUMSPerJob = &cpu
	}
	for _, f := range runs {
		out.Failed += f.Failed
	}
	return out
}

// reading is how far the platform was at one time.
type reading struct {
	head, published, audited int64
	// cpuMS is the processor time of each process, by its id.
	cpuMS map[int64]int64
}

// take asks the services how far they are.
func take(ctx context.Context, r *remote) (reading, error) {
	resp, err := r.status.GetStatus(ctx, &platformv1.GetStatusRequest{})
	if err != nil {
		return reading{}, err
	}
	out := reading{cpuMS: map[int64]int64{}}
	for _, s := range resp.GetServices() {
		out.head = max(out.head, s.GetHead())
		switch s.GetName() {
		case "relay":
			out.published = s.GetPosition()
		case "audit":
			out.audited = s.GetPosition()
		}
		if pid, ok := s.GetFigures()["process_id"]; ok {
			out.cpuMS[pid] = max(out.cpuMS[pid], s.GetFigures()["process_cpu_ms"])
		}
	}
	return out, nil
}

// since adds what happened between two readings to the figures.
func (f *figuresOfRun) since(before, after reading, elapsed time.Duration, jobs int) {
	rate := func(n int64) float64 { return round(float64(n) / elapsed.Seconds()) }
	f.EventsPerS = eventRates{
		Appended:  rate(after.head - before.head),
		Published: rate(after.published - before.published),
		Audited:   rate(after.audited - before.audited),
	}
	f.LagEnd = after.head - after.audited
	if len(after.cpuMS) == 0 {
		return
	}
	total := int64(0)
	for pid, ms := range after.cpuMS {
		total += ms - before.cpuMS[pid]
	}
	perJob := round(float64(total) / float64(jobs))
	f.CPUMSPerJob = &perJob
}
