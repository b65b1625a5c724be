package rpc

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"hodei.dev/libs/domain/fault"
)

// domain marks error details as ours.
const domain = "hodei.dev"

var kindCodes = map[fault.Kind]codes.Code{
	fault.Invalid:       codes.InvalidArgument,
	fault.NotFound:      codes.NotFound,
	fault.AlreadyExists: codes.AlreadyExists,
	fault.Conflict:      codes.Aborted,
	fault.Precondition:  codes.FailedPrecondition,
	fault.Exhausted:     codes.ResourceExhausted,
	fault.Unavailable:   codes.Unavailable,
	fault.Denied:        codes.PermissionDenied,
	fault.Internal:      codes.Internal,
}

// remote is a failed call whose status says more than a kind: it keeps the status,
// so that a service that hands it on (the gateway) answers the same.
type remote struct {
	st    *status.Status
	cause error
}

func (r *remote) Error() string              { return r.st.Message() }
func (r *remote) Unwrap() error              { return r.cause }
func (r *remote) GRPCStatus() *status.Status { return r.st }

// ToStatus is the status that tells a caller about err, nil for nil. A fault's
// kind gives the code; its code, advice, fields and retry time travel as the
// standard error details (ErrorInfo with the kind in its metadata, Help,
// BadRequest, RetryInfo). The end of a context and a status that another server
// gave keep their own code; everything else is Internal, with its text.
func ToStatus(err error) *status.Status {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		// Only its own cause: a fault around another fault is a new statement.
		if r, ok := e.Err.(*remote); ok { //nolint:errorlint // see above
			return r.st
		}
		return encode(err, e)
	}
	kind := fault.KindOf(err)
	var has interface{ GRPCStatus() *status.Status }
	switch {
	case kind != fault.Internal:
	case errors.As(err, &has) && has.GRPCStatus() != nil:
		return has.GRPCStatus()
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.New(codes.DeadlineExceeded, err.Error())
	}
	return encode(err, &fault.Error{Kind: kind, Message: err.Error()})
}

// encode makes the status of err whose details are those of e.
func encode(err error, e *fault.Error) *status.Status {
	code, ok := kindCodes[e.Kind]
	if !ok {
		code = codes.Internal
	}
	info := &errdetails.ErrorInfo{Reason: e.Code, Domain: domain, Metadata: map[string]string{"kind": string(e.Kind)}}
	details := []protoadapt.MessageV1{info}
	message := err.Error()
	if len(e.Fields) > 0 {
		// The fields travel as details; in the message too they would double at the caller.
		bare := *e
		bare.Fields = nil
		message = strings.Replace(message, e.Error(), bare.Error(), 1)
		bad := &errdetails.BadRequest{}
		for _, f := range e.Fields {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{
				Field: f.Name, Description: strings.ToValidUTF8(f.Problem, "\uFFFD"),
			})
		}
		details = append(details, bad)
	}
	if e.Advice != "" {
		details = append(details, &errdetails.Help{Links: []*errdetails.Help_Link{{Description: e.Advice}}})
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	st := status.New(code, strings.ToValidUTF8(message, "\uFFFD"))
	if full, err := st.WithDetails(details...); err == nil {
		return full
	}
	return st // a detail that is not valid UTF-8: the code and message still tell
}

// FromStatus is the error that a failed call means: a *fault.Error of the kind that
// the server named, else of the nearest kind. A call that ended because its context
// did also answers errors.Is of context.Canceled or context.DeadlineExceeded. nil
// and io.EOF (the end of a stream) stay what they are.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if e := decode(st); e != nil {
		return e
	}
	return foreign(st)
}

// decode reads what encode wrote, nil where another server wrote it.
func decode(st *status.Status) *fault.Error {
	e := &fault.Error{Message: st.Message()}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == domain {
				e.Kind, e.Code = fault.Kind(d.GetMetadata()["kind"]), d.GetReason()
			}
		case *errdetails.BadRequest:
			for _, v := range d.GetFieldViolations() {
				e.Fields = append(e.Fields, fault.Field{Name: v.GetField(), Problem: v.GetDescription()})
			}
		case *errdetails.Help:
			for _, link := range d.GetLinks() {
				e.Advice = link.GetDescription()
			}
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	if e.Kind == "" {
		return nil
	}
	if _, known := kindCodes[e.Kind]; !known {
		e.Kind = fault.Internal // a newer server's kind
	}
	return e
}

// foreign gives a status that no fault made its nearest kind: those of gRPC itself
// and of other servers.
func foreign(st *status.Status) error {
	for kind, code := range kindCodes {
		if code != st.Code() {
			continue
		}
		if kind == fault.Exhausted && strings.Contains(st.Message(), "larger than max") {
			return &fault.Error{
				Kind: fault.Invalid, Message: "the message is too large", Code: "MESSAGE_TOO_LARGE",
				Advice: "send less in one message", Err: &remote{st: st},
			}
		}
		return &fault.Error{Kind: kind, Message: st.Message()}
	}
	switch st.Code() {
	case codes.Canceled:
		return &remote{st: st, cause: context.Canceled}
	case codes.DeadlineExceeded:
		return fault.Wrap(fault.Unavailable, &remote{st: st, cause: context.DeadlineExceeded}, "no answer in time")
	case codes.Unauthenticated:
		return fault.Wrap(fault.Denied, &remote{st: st}, "not authenticated")
	case codes.OutOfRange:
		return fault.Wrap(fault.Invalid, &remote{st: st}, "out of range")
	case codes.Unimplemented:
		return fault.Wrap(fault.Internal, &remote{st: st}, "the server does not offer this call").
			WithCode("UNIMPLEMENTED", "use a client and a server of the same version, and the address of the right service")
	default:
		return fault.Wrap(fault.Internal, &remote{st: st}, "the server failed")
	}
}
