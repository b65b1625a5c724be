// Package core is what the timeout-monitor knows about time: which deadline a job
// or a worker is under ([Watch], [Rules.Deadline]), what follows when it has passed
// ([Rules.RecoverJob], [Rules.RecoverWorker]), which deadline comes next
// ([Agenda]), and which workers have fallen silent ([Silence]).
//
// It is pure: facts and the time come in, facts come out. What an aggregate may do
// is decided by the aggregate itself; this package only asks it.
package core
