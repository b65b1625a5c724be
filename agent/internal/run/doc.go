// Package run executes one attempt of a job as an operating system process and
// says exactly how it ended.
//
// A job gets a session and process group of its own inside a [proctree.Tree], a
// private work directory, an environment that starts from nothing, a standard
// input that is fed or closed, and no descriptor of the agent. Its output is
// delivered in chunks with one sequence over both streams; a sink that blocks
// slows the job down instead of filling memory. The result is ready when the main
// process has ended, nothing that it started is left, and its output has been
// delivered: in this order, so that a daemon which keeps the pipe open delays
// nobody.
//
// The package knows no network, no job states and no retries: what an end means
// for the job is decided elsewhere.
package run
