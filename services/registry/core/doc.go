// Package core is what registry decides: what an agent's words mean for its job
// and its worker, and what becomes of a job whose worker is gone.
//
// It is pure: state and time come in, facts go out. It has no clock, no I/O and
// no logger, and builds no transition itself: those are the domain's.
package core
