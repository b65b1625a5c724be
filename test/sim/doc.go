// Package sim plays the platform on virtual time: dispatcher, registry, provisioner
// and timeout-monitor, their agents and machines, a client and an event log run in one
// goroutine at a time, and a seed decides everything that happens, faults included.
// Hours pass in milliseconds, and a seed that fails fails again.
//
//	go test hodei.dev/test/sim                            some seeds, the same and new ones
//	go test hodei.dev/test/sim -run TestSim -seed=N       one of them, with its story
//	make sim SEEDS=100000                                 many
//
// # What is real
//
// Every decision: libs/domain, and each service's core (the dispatcher's State, Plan
// and Refused; registry's Begin, Finish, Stale, Reconcile, Fenced, GiveUp; the
// provisioner's Next, Ended, Sightings; the monitor's Rules, Agenda, Silence), the
// events' encoding, and the checker of invariants, test/check.
//
// # What is mirrored
//
// What may not be imported, thinly: the use cases of internal/app (load, decide,
// append, try again), registry's sessions, and the agent, by its contract. Whoever
// changes one of those changes its mirror: it is in the file of the same name.
// The log keeps the promises of store.Store: versions, contiguous positions, an append
// that is repeated is answered as the first time. The bus is left out: what it may do
// to a service, that events come late or again, is done to the feeds.
//
// # What goes wrong
//
// Services are killed between any two steps (before an append, after it, before RUN,
// before a position is stored), stopped, started beside themselves; of registry's two
// replicas one may be off the bus, with or without anybody being told; clocks jump; the log
// goes away or loses an answer; commands are lost, late, doubled; agents are killed,
// stopped, cut off; providers fail, are slow, lose resources or grow some of their own.
// All of it is a list of faults, so that a failing one can be shortened: [Shrink].
//
// # What must hold
//
// What test/check says of the log; no two commands of one job at once, none without
// the log's permission, none left, by the machines' journal; the budgets of the retry
// policy; nothing queued again after its cancel; no resource without a READY worker;
// all at rest within [patience] after the faults; and where only services restarted,
// nothing waited for a deadline and no attempt was lost.
package sim
