// Package app is the use cases of the provisioner: it makes the workers that the
// log asks for and ends those that it gives up, on providers that it does not know
// from one another.
//
// The log says what should be; a provider says what is. For every worker there is
// at most one goroutine that brings the two together, begun by an event, a word of
// the provider or a sweep, and led by a fresh read of the worker each time: so it
// does not matter what came before, what came twice, or what a crash left behind.
//
// The package has no clock, no database and no network of its own.
package app
