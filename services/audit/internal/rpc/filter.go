package rpc

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/eventing/event"
	"hodei.dev/libs/platform/rpc"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	"hodei.dev/services/audit/internal/app"
)

// The size of a page.
const (
	defaultPage = 100
	maxPage     = 1000
)

// aggregates are the kinds that a filter may name.
var aggregates = []string{catalogue.Job, catalogue.Worker, catalogue.Provider, catalogue.EventLog, catalogue.Circuit, catalogue.DeadLetter}

func search(in *auditv1.SearchEventsRequest) (app.Filter, app.Page, error) {
	var wrong fault.Fields
	f := readFilter(&wrong, in.GetFilter())
	p := app.Page{Ascending: in.GetAscending(), Limit: int(in.GetPageSize())}
	switch {
	case p.Limit == 0:
		p.Limit = defaultPage
	case p.Limit < 0 || p.Limit > maxPage:
		wrong.Add("page_size", "%d: from 1 to %d, or 0 for %d", p.Limit, maxPage, defaultPage)
	}
	if in.GetPageToken() != "" {
		p.After = decodeToken(&wrong, in)
	}
	return f, p, wrong.Err("the search")
}

func filterOf(in *auditv1.EventFilter) (app.Filter, error) {
	var wrong fault.Fields
	f := readFilter(&wrong, in)
	return f, wrong.Err("the filter")
}

func readFilter(wrong *fault.Fields, in *auditv1.EventFilter) app.Filter {
	f := app.Filter{CorrelationID: in.GetCorrelationId(), Types: in.GetTypes(), Actor: in.GetActor(), Namespace: in.GetNamespace()}
	if f.CorrelationID != "" {
		if err := rpc.ValidateCorrelationID(f.CorrelationID); err != nil {
			wrong.Add("filter.correlation_id", "%s", err)
		}
	}
	if f.Actor != "" {
		if err := rpc.ValidateActor(f.Actor); err != nil {
			wrong.Add("filter.actor", "%s", err)
		}
	}
	for _, t := range f.Types {
		if t == "" || strings.ContainsRune(t, 0) {
			wrong.Add("filter.types", "%q is not the name of an event type, such as JobCreated", clip(t))
		}
	}
	if strings.ContainsRune(f.Namespace, 0) || len(f.Namespace) > 63 {
		wrong.Add("filter.namespace", "%q: at most 63 lower-case letters, digits or '-'", clip(f.Namespace))
	}
	f.Stream = readAggregate(wrong, "filter.aggregate", in.GetAggregate())
	f.Since = readTime(wrong, "filter.since", in.GetSince())
	f.Until = readTime(wrong, "filter.until", in.GetUntil())
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		wrong.Add("filter.until", "is not after since")
	}
	return f
}

// readAggregate reads "job", "job/<id>" or "job/<prefix of an id>".
func readAggregate(wrong *fault.Fields, field, text string) event.Stream {
	if text == "" {
		return event.Stream{}
	}
	kind, id, slash := strings.Cut(text, "/")
	id = strings.ToLower(id)
	digits := strings.ReplaceAll(id, "-", "")
	switch {
	case !slices.Contains(aggregates, kind):
		wrong.Add(field, "%q: begin with %s, then /ID", clip(text), strings.Join(aggregates, ", "))
	case slash && (digits == "" || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != ""):
		wrong.Add(field, "%q: after the slash comes an id or hexadecimal digits that it begins with", clip(text))
	case len(digits) == 32: // also without its dashes
		id = digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:]
	}
	return event.Stream{Type: kind, ID: id}
}

func readTime(wrong *fault.Fields, field string, t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	if err := t.CheckValid(); err != nil {
		wrong.Add(field, "not a time: %s", err)
	}
	return t.AsTime()
}

func traceOf(in *auditv1.TraceEventsRequest) (string, event.Stream, error) {
	var wrong fault.Fields
	stream := readAggregate(&wrong, "aggregate", in.GetAggregate())
	id := in.GetCorrelationId()
	switch {
	case id == "" && in.GetAggregate() == "":
		wrong.Add("correlation_id", "missing: give a correlation id or an aggregate such as job/01890a5d")
	case id != "" && in.GetAggregate() != "":
		wrong.Add("aggregate", "give a correlation id or an aggregate, not both")
	case id != "":
		if err := rpc.ValidateCorrelationID(id); err != nil {
			wrong.Add("correlation_id", "%s", err)
		}
	}
	return id, stream, wrong.Err("the trace")
}

// token is where a page ended, and what it was a page of.
type token struct {
	Position int64 `json:"p"`
	// Search is a fingerprint: a token continues the search that it came from, no other.
	Search []byte `json:"s"`
}

func encodeToken(in *auditv1.SearchEventsRequest, position int64) (string, error) {
	sum, err := fingerprint(in)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(token{Position: position, Search: sum})
	if err != nil {
		return "", fmt.Errorf("encode a page token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b), nil
}

func decodeToken(wrong *fault.Fields, in *auditv1.SearchEventsRequest) int64 {
	var t token
	b, err := base64.RawURLEncoding.DecodeString(in.GetPageToken())
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	sum, sumErr := fingerprint(in)
	switch {
	case err != nil || sumErr != nil || t.Position <= 0:
		wrong.Add("page_token", "is not a token that this service gave: use next_page_token as it is, or leave it out")
	case !slices.Equal(t.Search, sum):
		wrong.Add("page_token", "belongs to another search: repeat the filter and the order of the first page")
	}
	return t.Position
}

// fingerprint tells searches apart. The size of a page may change on the way.
func fingerprint(in *auditv1.SearchEventsRequest) ([]byte, error) {
	bare := &auditv1.SearchEventsRequest{Filter: in.GetFilter(), Ascending: in.GetAscending()}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return nil, fmt.Errorf("encode a search: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:8], nil
}

func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
