package consumer

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"hodei.dev/libs/eventing/event"
)

// StreamType is the aggregate type of what is recorded about consumers. Such
// events alone never make an incident, so that none can cause the next one.
const StreamType = "consumer"

// Incident is a time in which a consumer did not get its events from the stream
// as it should. It is over, and nothing was skipped.
type Incident struct {
	// Service and Consumer are the names of both.
	Service, Consumer string
	// Reason is what was noticed first.
	Reason string
	// Began and Ended are by this process's clock.
	Began, Ended time.Time
	// Position is where it stood when it began, Through where it was at the end.
	Position, Through int64
	// FromLog is how many events were read from the log because the stream did not bring them.
	FromLog int64
}

// trouble is an incident that is not over, and may yet turn out to be none.
type trouble struct {
	Incident
	grave bool      // an incident however short, and although nothing was missing
	last  time.Time // when something was wrong last
}

// troubled notes that something is wrong; the first reason is kept.
func (c *Consumer) troubled(reason string, grave bool) {
	if c.trouble == nil {
		c.trouble = &trouble{Incident: Incident{
			Service: c.cfg.Service, Consumer: c.cfg.Name, Reason: reason, Began: time.Now(), Position: c.position,
		}}
	}
	c.trouble.last = time.Now()
	if grave && !c.trouble.grave {
		c.trouble.grave, c.trouble.Reason = true, reason
	}
}

// supplied counts what the log had to bring.
func (c *Consumer) supplied(events []event.Event) {
	if c.trouble == nil {
		return
	}
	for _, e := range events {
		if e.Stream.Type != StreamType {
			c.trouble.FromLog++
		}
	}
}

// quiet tells that events come and nothing was wrong for a while: a consumer that
// never quite catches up has recovered all the same.
func (c *Consumer) quiet(now time.Time) bool {
	return c.trouble != nil && now.Sub(c.trouble.last) > c.cfg.ProbeInterval
}

// relieved ends what was wrong: all that waited is handled. It was an incident
// where events were missing, where it took long, or where it was grave.
func (c *Consumer) relieved(ctx context.Context) {
	t := c.trouble
	if t == nil {
		return
	}
	c.trouble = nil
	t.Ended, t.Through = time.Now(), c.position
	if t.FromLog == 0 && !t.grave && t.Ended.Sub(t.Began) < c.cfg.IncidentAfter {
		return
	}
	c.m.incidents.Add(ctx, 1, c.m.name)
	c.log.Warn("has recovered, nothing was skipped", "reason", t.Reason, "after", t.Ended.Sub(t.Began), "from_log", t.FromLog,
		"position", t.Position, "through", t.Through)
	if c.cfg.Incident != nil {
		c.cfg.Incident(t.Incident)
	}
}

// waited makes an incident of what was tried again for too long, such as a
// Postgres that was away. Within another incident it is part of that.
func (c *Consumer) waited(ctx context.Context, what string, cause error, since time.Time) {
	if c.trouble != nil || !c.begun || time.Since(since) < c.cfg.IncidentAfter {
		return
	}
	c.troubled("could not "+what+": "+cause.Error(), true)
	c.trouble.Began = since
	c.relieved(ctx)
}

// grave tells an end of a session that is an incident however short: somebody
// has taken the consumer away, or it has fallen silent.
func grave(err error) bool {
	for _, target := range []error{errReplaced, errOtherStream, jetstream.ErrConsumerDeleted, jetstream.ErrConsumerNotFound, jetstream.ErrNoHeartbeat} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
