package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/rpc"
)

// typed is a failure of another package that answers to a kind.
type typed struct{}

func (typed) Error() string        { return "job j-1 is RUNNING, cannot become PENDING" }
func (typed) Is(target error) bool { return target == fault.Precondition }

func TestEveryKindRoundTrips(t *testing.T) {
	for kind, code := range map[fault.Kind]codes.Code{
		fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound, fault.AlreadyExists: codes.AlreadyExists,
		fault.Conflict: codes.Aborted, fault.Precondition: codes.FailedPrecondition, fault.Exhausted: codes.ResourceExhausted,
		fault.Unavailable: codes.Unavailable, fault.Denied: codes.PermissionDenied, fault.Internal: codes.Internal,
	} {
		t.Run(string(kind), func(t *testing.T) {
			sent := &fault.Error{
				Kind: kind, Message: "the job is not valid", Code: "VALIDATION", Advice: "correct it",
				Fields: []fault.Field{{Name: "retry.max_attempts", Problem: "must be 1 or more"}, {Name: "env", Problem: "b\xffd"}}, RetryAfter: 1500 * time.Millisecond,
			}
			h := &handler{answer: func(context.Context) error { return sent }}
			err := echo(t.Context(), start(t, rpc.Options{}, h))
			if !errors.Is(err, kind) || fault.KindOf(err) != kind {
				t.Fatalf("kind %v of %v", fault.KindOf(err), err)
			}
			var got *fault.Error
			errors.As(err, &got)
			sent.Fields[1].Problem = "b\uFFFDd"
			if diff := cmp.Diff(sent, got, cmpopts.IgnoreFields(fault.Error{}, "Err")); diff != "" {
				t.Error(diff)
			}
			if st := rpc.ToStatus(sent); st.Code() != code {
				t.Errorf("code %s, want %s", st.Code(), code)
			}
		})
	}
}

func TestToStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		err     error
		code    codes.Code
		message string
	}{
		"nil":              {nil, codes.OK, ""},
		"bare kind":        {fmt.Errorf("loading j-1: %w", fault.NotFound), codes.NotFound, "loading j-1: not found"},
		"typed":            {fmt.Errorf("cancelling: %w", typed{}), codes.FailedPrecondition, "cancelling: job j-1 is RUNNING, cannot become PENDING"},
		"any other":        {io.ErrUnexpectedEOF, codes.Internal, "unexpected EOF"},
		"cancelled":        {fmt.Errorf("x: %w", context.Canceled), codes.Canceled, "x: context canceled"},
		"deadline":         {context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		"kind over ctx":    {fault.Wrap(fault.Unavailable, context.DeadlineExceeded, "postgres is away"), codes.Unavailable, "postgres is away: context deadline exceeded"},
		"status":           {status.Error(codes.Unimplemented, "no"), codes.Unimplemented, "no"},
		"wrapped, cause":   {fmt.Errorf("queueing: %w", fault.Wrap(fault.Conflict, io.EOF, "somebody else decided")), codes.Aborted, "queueing: somebody else decided: EOF"},
		"fields not twice": {fmt.Errorf("queueing: %w", fault.Fields{{Name: "a", Problem: "b"}}.Err("the job")), codes.InvalidArgument, "queueing: the job is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			st := rpc.ToStatus(tc.err)
			if st.Code() != tc.code || st.Message() != tc.message {
				t.Errorf("got %s %q", st.Code(), st.Message())
			}
		})
	}
}

func TestFromStatusOfOthers(t *testing.T) {
	for code, tc := range map[codes.Code]struct {
		is   error
		code codes.Code // what a service that hands it on answers
	}{
		codes.Canceled:          {context.Canceled, codes.Canceled},
		codes.DeadlineExceeded:  {context.DeadlineExceeded, codes.DeadlineExceeded},
		codes.Unimplemented:     {fault.Internal, codes.Unimplemented},
		codes.Unauthenticated:   {fault.Denied, codes.Unauthenticated},
		codes.OutOfRange:        {fault.Invalid, codes.OutOfRange},
		codes.Unknown:           {fault.Internal, codes.Unknown},
		codes.DataLoss:          {fault.Internal, codes.DataLoss},
		codes.Unavailable:       {fault.Unavailable, codes.Unavailable},
		codes.Aborted:           {fault.Conflict, codes.Aborted},
		codes.ResourceExhausted: {fault.Exhausted, codes.ResourceExhausted},
	} {
		err := rpc.FromStatus(status.Error(code, "because"))
		if !errors.Is(err, tc.is) {
			t.Errorf("%s became %v (%s)", code, err, fault.KindOf(err))
		}
		if got := rpc.ToStatus(fmt.Errorf("routing: %w", err)).Code(); got != tc.code {
			t.Errorf("%s was handed on as %s", code, got)
		}
	}
	if err := rpc.FromStatus(io.EOF); err != io.EOF { //nolint:errorlint // it must be the very value
		t.Errorf("EOF became %v", err)
	}
	if rpc.FromStatus(nil) != nil {
		t.Error("nil became an error")
	}
	deadline := rpc.FromStatus(status.Error(codes.DeadlineExceeded, "x"))
	if !errors.Is(deadline, fault.Unavailable) {
		t.Error("a deadline is not worth a retry")
	}
	again := fmt.Errorf("deciding: %w", fault.Wrap(fault.Precondition, rpc.FromStatus(status.Error(codes.Unimplemented, "no")), "cannot"))
	if got := rpc.ToStatus(again).Code(); got != codes.FailedPrecondition {
		t.Errorf("a fault around a remote one became %s", got)
	}
}
