package rpc

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"hodei.dev/libs/domain/fault"
)

// codec lets a message that is not valid protobuf reach the interceptors. gRPC
// itself answers it with INTERNAL before any of our code runs, which tells a caller
// that the server is at fault. Here the message arrives empty, with the reason in an
// unknown field that no .proto may use; [malformed] finds it.
type codec struct{ encoding.CodecV2 }

// newCodec wraps the codec that gRPC itself registers.
func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

// mark is the tag of the largest field number.
var mark = protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.BytesType)

// Unmarshal implements [encoding.CodecV2].
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	m, ok := v.(proto.Message)
	if err == nil || !ok {
		return err
	}
	proto.Reset(m)
	m.ProtoReflect().SetUnknown(protowire.AppendString(bytes.Clone(mark), err.Error()))
	return nil
}

// malformed is the error of a request that could not be decoded, nil for others.
func malformed(v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return nil
	}
	reason, found := bytes.CutPrefix(m.ProtoReflect().GetUnknown(), mark)
	if !found {
		return nil
	}
	text, _ := protowire.ConsumeString(reason)
	return &fault.Error{
		Kind: fault.Invalid, Message: fmt.Sprintf("the request cannot be decoded: %s", text), Code: "MALFORMED_REQUEST",
		Advice: "send a message of the service's .proto; texts must be valid UTF-8",
	}
}
