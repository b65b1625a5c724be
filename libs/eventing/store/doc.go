// Package store is the event log on Postgres: the one place where a fact becomes
// true.
//
// What it promises:
//
//   - An append is all or nothing, may span streams, and succeeds only where every
//     stream still has the version that the caller expected.
//   - Positions are contiguous from 1 and their order is the order of commits, so
//     whoever reads "position > cursor" misses nothing.
//   - An append repeated with the same event ids gets its first answer: a caller
//     that lost an answer repeats, and nothing happens twice.
//   - Nothing is ever updated or deleted.
//
// How: one server-side function, called outside of any other transaction, takes
// an advisory lock, then reads the head. Appends of concurrent callers share one
// commit; each gets its own answer.
//
// It knows no aggregate and decodes no data. It is not a queue: the relay
// publishes what stands here.
package store
