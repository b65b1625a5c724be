// Package core holds the scheduler's own decisions, pure: whether two
// submissions are the same job, and how a job's situation is said in words. The
// decisions about a job itself are in hodei.dev/libs/domain/job.
package core
