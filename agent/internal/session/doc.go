// Package session is an agent's side of its conversation with the registry: it
// registers once, keeps a Connect stream open for as long as the worker lives, and
// carries attempts from Run to their acknowledged result.
//
// One goroutine owns the state; everything else (the stream, processes, timers)
// tells it what happened. What it promises:
//
//   - a command starts only on Start, and an attempt runs at most once, whatever is
//     repeated or comes in another order;
//   - a result is sent again after each reconnect until it is acknowledged;
//   - an attempt runs on no longer than a lease after the last heartbeat that the
//     registry has answered (counted from when it was sent), plus the kill grace;
//   - the last word is a Stopping whose reason begins with [Goodbye]: then nothing
//     of the worker runs any more.
//
// What an end means for the job is the registry's to decide.
package session
