// Package proto holds the gRPC contracts of every service, with their generated
// Go code beside them. It has no code of its own.
package proto
