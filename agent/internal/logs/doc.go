// Package logs ships the output of attempts to the registry: in order, without a
// gap and without a duplicate that the receiver could not tell by its sequence
// number, over as many streams as it takes.
//
// What is not acknowledged is kept, up to a window for each attempt; then the sink
// blocks, and with it the job. It travels on a stream of its own, so that a flood
// delays no heartbeat.
package logs
