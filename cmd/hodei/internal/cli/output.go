package cli

import (
	"fmt"
	"io"
	"time"

	"hodei.dev/cmd/hodei/internal/render"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
)

// output is where the chunks of a job's log go: its stdout to ours, its stderr to
// ours, byte for byte; or each chunk as an object a line. Not safe for concurrent use.
type output struct {
	a          *app
	timestamps bool
	// midline: what was last written to the stream ended inside a line.
	midline map[string]bool
}

func (a *app) newOutput(timestamps bool) *output {
	return &output{a: a, timestamps: timestamps, midline: map[string]bool{}}
}

func (o *output) write(attempt int32, c *registryv1.LogChunk) error {
	if o.a.json() {
		line, err := render.With("attempt", attempt, c)
		if err != nil {
			return err
		}
		_, err = o.a.out.Write(append(line, '\n'))
		return err
	}
	w := o.a.out
	if c.GetStream() == "stderr" {
		w = o.a.err
	}
	if err := o.text(w, c); err != nil {
		return fmt.Errorf("printing the job's output: %w", err)
	}
	if n := c.GetDropped(); n > 0 {
		o.endLine()
		o.a.note("%d bytes of the job's %s were cut here: the log was full", n, c.GetStream())
	}
	return nil
}

func (o *output) text(w io.Writer, c *registryv1.LogChunk) error {
	data := c.GetData()
	if len(data) == 0 {
		return nil
	}
	if !o.timestamps {
		o.midline[c.GetStream()] = data[len(data)-1] != '\n'
		_, err := w.Write(data)
		return err
	}
	prefix := c.GetTime().AsTime().UTC().Format(time.RFC3339Nano) + " "
	out := make([]byte, 0, len(data)+len(prefix))
	for _, b := range data {
		if !o.midline[c.GetStream()] {
			out = append(out, prefix...)
		}
		out = append(out, b)
		o.midline[c.GetStream()] = b != '\n'
	}
	_, err := w.Write(out)
	return err
}

// endLine ends a line of stderr that the job left open, so that a note of ours
// begins on its own.
func (o *output) endLine() {
	if o.midline["stderr"] {
		fmt.Fprintln(o.a.err)
		o.midline["stderr"] = false
	}
}
