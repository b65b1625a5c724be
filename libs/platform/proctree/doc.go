// Package proctree holds a tree of processes together so that it can be
// measured, limited and ended for sure: also when the program that started it
// was killed with -9, and when a descendant called setsid and became a daemon.
//
// A [Root] is the place where a program keeps its trees; a [Tree] has a name,
// and any later process that opens the same root finds it by that name and may
// watch it or end it. Three modes, the best one available is taken:
//
//   - cgroup2: the tree is a cgroup of the unified hierarchy. A process is born
//     in it (clone3), nothing short of root leaves it, and the kernel kills it
//     as a whole. Limits come from its controllers, or from those of version 1
//     on machines that mount both.
//   - cgroup1: the tree is a cgroup of a version 1 hierarchy, by preference the
//     freezer. A process is born in it, because the thread that forks joins
//     first. Killing freezes where it can, so that a fork bomb loses the race.
//   - groups: no cgroup may be written. Members are the recorded processes,
//     their sessions and descendants, and every process that carries the tree's
//     marker ([MarkerEnv]) in its environment. A process that left its session,
//     lost its parents and cleared its environment escapes; a root with
//     Subreaper closes that door for as long as its own process lives. There are
//     no limits.
//
// Processes are identified by pid and start time, and signalled through a
// pidfd, so a recycled pid is never hit. Nothing here polls: ends are waited for
// on pidfds.
//
// The package does not restart, schedule or judge what it runs. A process that
// is root and may write cgroups can leave any tree in any mode.
package proctree
