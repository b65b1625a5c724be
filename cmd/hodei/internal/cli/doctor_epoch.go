package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
	relayv1 "hodei.dev/proto/hodei/relay/v1"
)

// epochIn bounds the wait for the relay to go on with the new stream.
const epochIn = 30 * time.Second

// newEpoch has the events stream made anew: it shows what that does, asks, does it,
// and waits until the relay goes on.
func (a *app) newEpoch(ctx context.Context, r *remote, f doctorFlags) error {
	plan, err := r.completeness.BeginEpoch(ctx, &relayv1.BeginEpochRequest{DryRun: true})
	if err != nil {
		return err
	}
	if f.dryRun {
		return a.epoch(plan)
	}
	if !a.json() {
		if err := a.epoch(plan); err != nil {
			return err
		}
	}
	if !f.yes {
		if !onTerminal(a.in) {
			return Usage("--new-epoch gives events up: say --yes where nobody can be asked")
		}
		fmt.Fprint(a.err, "\nGive the stream up and go on with the log? Type yes: ")
		answer, err := bufio.NewReader(a.in).ReadString('\n')
		if strings.TrimSpace(answer) != "yes" {
			a.note("nothing was done")
			return exitError(exitFailed)
		}
		if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
	}
	done, err := r.completeness.BeginEpoch(ctx, &relayv1.BeginEpochRequest{StreamCreated: plan.GetStreamCreated()})
	if err != nil {
		return err
	}
	if err := a.awaitEpoch(ctx, r, done); err != nil {
		return err
	}
	if a.json() {
		return render.Object(a.out, done)
	}
	a.note("the stream begins anew after position %d; recorded as event %s", done.GetBase(), done.GetEventId())
	return nil
}

// awaitEpoch returns when log and stream agree again.
func (a *app) awaitEpoch(ctx context.Context, r *remote, done *relayv1.BeginEpochResponse) error {
	ctx, cancel := context.WithTimeout(ctx, epochIn)
	defer cancel()
	for {
		c, err := a.compare(ctx, r, doctorFlags{quick: true, limit: 1})
		if err == nil && c.GetAgrees() && !c.GetStreamCreated().AsTime().Equal(done.GetStreamCreated().AsTime()) {
			return nil
		}
		if wait(ctx, 200*time.Millisecond) != nil {
			return fault.New(fault.Unavailable, "the new epoch is recorded (event %s), but the relay has not made the stream yet", done.GetEventId()).
				WithCode("EPOCH_PENDING", "see why the relay is not ready: `hodei status`")
		}
	}
}

func (a *app) epoch(p *relayv1.BeginEpochResponse) error {
	if a.json() {
		return render.Object(a.out, p)
	}
	var s render.Sheet
	s.Add("reason", "%s", p.GetReason())
	s.Add("log ends at", "%d", p.GetLogHead())
	s.Add("stream ends at", "%d, created %s", p.GetStreamHead(), p.GetStreamCreated().AsTime().Format(time.RFC3339))
	s.Add("both agree up to", "%d", p.GetAgreed())
	s.Add("new stream", "begins after position %d: %d events are published again", p.GetBase(), p.GetLogHead()-p.GetBase())
	s.Add("given up", "%d events that only the old stream has", len(p.GetGivenUp()))
	if err := s.Print(a.out); err != nil {
		return err
	}
	for _, d := range p.GetGivenUp() {
		if _, err := fmt.Fprintf(a.out, "  %d  %s  %s  %s\n", d.GetPosition(), render.Plain(d.GetType()), render.Plain(d.GetAggregate()), d.GetEventId()); err != nil {
			return err
		}
	}
	return nil
}

// onTerminal tells whether a person is at the other end.
func onTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
