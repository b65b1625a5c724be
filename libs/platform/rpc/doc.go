// Package rpc is how services speak gRPC: servers and connections that are all
// alike, the call (correlation id, actor, causation id) taken or made at the edge
// and put on every outgoing call, and faults that cross the wire in one place each
// way ([ToStatus], [FromStatus]).
//
// It does not authenticate: the actor is what the caller says it is.
package rpc
