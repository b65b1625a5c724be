// Package app holds registry's use cases: an agent registers, attaches, takes an
// attempt, reports its end and leaves; an operator drains or terminates a worker;
// an event of another service has consequences here.
//
// Each loads what it decides about (or knows it already), asks the domain or
// core, and appends with the versions that it expects. A conflict means that
// somebody decided first: it is loaded and decided again, a few times.
package app
