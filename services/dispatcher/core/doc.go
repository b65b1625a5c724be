// Package core decides which job runs where: it holds the ready queue, the idle
// workers and the providers' room in memory, and nothing else.
//
// A [State] is fed with what the log says (Observe and Apply, idempotent by
// version) and asked for decisions. A decision is a proposal: until [State.Settle]
// its job, and the worker or the room that it takes, are reserved, so that nothing
// is decided twice while the append is on its way. The log alone makes it true.
//
// # Order
//
// Higher priority first; at equal priority the namespace with the fewest live jobs
// (SCHEDULED, ASSIGNED, RUNNING); then age, which is the order of the first queueing:
// a job that is queued again keeps its place. There is no preemption and no room
// held free for a big job: smaller ones may overtake it while it does not fit.
//
// # Strategy
//
// The provider that the job prefers before the others, as long as it fits and has an
// idle worker or room for one. Among equals an idle worker before a new one. A job
// that is SCHEDULED where it prefers to be waits for a worker of that provider; any
// other takes what comes first. A SCHEDULED job's own worker is kept for it; of
// the others the least recently used that fits is taken. A new worker is made by
// the healthy provider with the most room for workers, the first by name among
// equals. Every candidate is recorded with its reason.
//
// # Circuits
//
// A circuit breaker guards each provider's making of workers, and each path to workers:
// the registry process that holds their sessions. While one is open its workers are
// given nothing and its provider makes none, so that jobs go elsewhere or wait, with the
// reason in the log; no job is its probe. A path is probed by asking a session, a
// provider by having it make one worker that nobody waits for. [State.Steps] says what
// is due; the log alone makes it true.
//
// # Cost
//
// Jobs are grouped by shape (resources and placement): what does not fit for one
// job of a shape does not fit for any, so that a group is looked at once per change
// of room, however many jobs it has. A decision costs O(log n) in the jobs and is
// linear in the distinct shapes, providers and sizes of idle workers.
//
// The package has no clock, no ids of its own making, no I/O and no locks: a State
// belongs to one goroutine.
package core
