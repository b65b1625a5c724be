package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) submitCommand() *cobra.Command {
	var flags specFlags
	var detach bool
	var file string
	cmd := &cobra.Command{
		Use:   "submit [flags] [--] COMMAND [ARG...] | --file FILE",
		Short: "queue a job, or a file of jobs, and print the ids",
		Long: `Submit queues a job and prints its id. It does not wait for it, unless --detach=false.

With --file it queues one job for each line of a file (- = standard input) and prints
one id a line, in the same order. A line is a JSON object with the field names of the
API, such as {"name":"a","command":["sh","-c","true"],"env":{"A":"b"},"timeout":"30s"}.
A line that is refused is told on stderr with its number, the others are queued, and
the exit code is 1. A server that restarts, or takes no more jobs just now, is waited
for; jobs with an "id" or "idempotency_key" may be sent again without being doubled. Progress goes to stderr. With -o json each line of the answer is
an object: line, index, job_id, existed, error.`,
		Example: `  hodei submit --name nightly -- ./nightly --full
  hodei submit --file jobs.jsonl
  generate-jobs | hodei submit --file - > ids`,
		RunE: func(cmd *cobra.Command, argv []string) error {
			if file != "" {
				if err := onlyWithFile(cmd, argv); err != nil {
					return err
				}
				return a.submitFile(cmd, file, flags.namespace, flags.room)
			}
			spec, err := flags.spec(a, cmd, argv)
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), spec, detach, flags.room)
		},
	}
	flags.add(a, cmd)
	cmd.Flags().BoolVar(&detach, "detach", true, "print the job's id and do not wait for it; with --detach=false it is run")
	cmd.Flags().StringVarP(&file, "file", "f", "", "queue the jobs of `FILE`, one JSON object a line; - is standard input")
	return cmd
}

// onlyWithFile refuses flags that would not reach the jobs of a file.
func onlyWithFile(cmd *cobra.Command, argv []string) error {
	if len(argv) > 0 {
		return Usage("--file takes the jobs from the file: %q would be ignored", argv[0])
	}
	var err error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		own := cmd.InheritedFlags().Lookup(f.Name) == nil
		if own && f.Name != "file" && f.Name != "namespace" && f.Name != "detach" && f.Name != "wait-for-room" && err == nil {
			err = Usage("--file takes the jobs from the file: --%s would be ignored", f.Name)
		}
	})
	return err
}

func (a *app) submitFile(cmd *cobra.Command, file, namespace string, room time.Duration) error {
	r := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return Usage("--file: %v", err)
		}
		defer f.Close()
		r = f
	}
	ctx, server, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	s := newSubmission(a, server, namespace, room)
	err = s.run(ctx, r)
	s.progress.done()
	if err != nil {
		s.tellUnanswered()
		return fmt.Errorf("after %d jobs of %s: %w", s.accepted, nameOf(file), err)
	}
	if s.refused > 0 {
		a.note("%d jobs queued, %d lines refused", s.accepted, s.refused)
		return exitError(exitFailed)
	}
	return nil
}

func nameOf(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// terminalOf tells whether w is a terminal.
func terminalOf(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}
