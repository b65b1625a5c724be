package rpc

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"hodei.dev/libs/domain/fault"
)

// errStopping is why the contexts of open streams end when the server stops.
var errStopping = fault.New(fault.Unavailable, "the server is stopping").WithCode("STOPPING", "call again: it is restarted, or another replica answers")

// edge is what every incoming call passes.
type edge struct {
	log       *slog.Logger
	translate func(error) error
	// stopping ends when open streams must.
	stopping context.Context
}

func (e *edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	c, err := incoming(ctx)
	if err == nil {
		ctx = WithCall(ctx, c)
		// It fails only where the headers are already sent, and here none are.
		_ = grpc.SetHeader(ctx, metadata.Pairs(KeyCorrelationID, c.CorrelationID))
		if err = malformed(req); err == nil {
			err = e.protect(ctx, info.FullMethod, func() error {
				resp, err = handle(ctx, req)
				return err
			})
		}
	}
	return resp, e.finish(ctx, info.FullMethod, began, err)
}

func (e *edge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	began := time.Now()
	ctx := ss.Context()
	c, err := incoming(ctx)
	if err == nil {
		ctx = WithCall(ctx, c)
		_ = ss.SetHeader(metadata.Pairs(KeyCorrelationID, c.CorrelationID))
		streamCtx, cancel := context.WithCancelCause(ctx)
		unhook := context.AfterFunc(e.stopping, func() { cancel(errStopping) })
		err = e.protect(ctx, info.FullMethod, func() error {
			return handle(srv, &serverStream{ServerStream: ss, ctx: streamCtx})
		})
		if errors.Is(err, context.Canceled) && errors.Is(context.Cause(streamCtx), errStopping) {
			err = errStopping
		}
		unhook()
		cancel(nil)
	}
	return e.finish(ctx, info.FullMethod, began, err)
}

// protect turns a panic of a handler into an Internal error; the log has the stack.
func (e *edge) protect(ctx context.Context, method string, handle func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			e.log.ErrorContext(ctx, "handler panicked", "method", method, "panic", p, "stack", string(debug.Stack()))
			err = fault.New(fault.Internal, "the handler of %s panicked: %v", method, p)
		}
	}()
	return handle()
}

// finish logs a call and translates its error.
func (e *edge) finish(ctx context.Context, method string, began time.Time, err error) error {
	err = e.translate(err)
	st := ToStatus(err)
	level := slog.LevelDebug
	if st.Code() == codes.Internal || st.Code() == codes.Unknown || st.Code() == codes.DataLoss {
		level = slog.LevelError
	}
	if e.log.Enabled(ctx, level) {
		attrs := []slog.Attr{
			slog.String("method", method), slog.String("code", st.Code().String()), slog.Duration("took", time.Since(began)),
		}
		if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
			attrs = append(attrs, slog.String("peer", p.Addr.String()))
		}
		if err != nil {
			attrs = append(attrs, slog.String("error", err.Error()))
		}
		e.log.LogAttrs(ctx, level, "call", attrs...)
	}
	return st.Err()
}

// serverStream is a stream whose context carries the call and ends on a stop.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *serverStream) Context() context.Context { return s.ctx }

// RecvMsg refuses a message that could not be decoded.
func (s *serverStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return malformed(m)
}
