package core

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"hodei.dev/libs/domain/job"
)

// Digest is a fingerprint of a spec with its defaults: two submissions with the
// same digest ask for the same job. Map keys are sorted by their JSON form, so
// that it does not depend on the order in which a client wrote them.
func Digest(spec job.Spec) ([]byte, error) {
	text, err := json.Marshal(spec.WithDefaults())
	if err != nil {
		return nil, fmt.Errorf("digest a job's spec: %w", err)
	}
	sum := sha256.Sum256(text)
	return sum[:], nil
}

// Differences names the fields, as the API does, in which two specs differ, both
// taken with their defaults; none where they ask for the same job.
func Differences(a, b job.Spec) []string {
	a, b = a.WithDefaults(), b.WithDefaults()
	var out []string
	differ := func(name string, same bool) {
		if !same {
			out = append(out, name)
		}
	}
	differ("name", a.Name == b.Name)
	differ("namespace", a.Namespace == b.Namespace)
	differ("command", slices.Equal(a.Command, b.Command))
	differ("script", (a.Script == nil) == (b.Script == nil) && (a.Script == nil || *a.Script == *b.Script))
	differ("env", maps.Equal(a.Env, b.Env))
	differ("cwd", a.Cwd == b.Cwd)
	differ("stdin", bytes.Equal(a.Stdin, b.Stdin))
	differ("resources", a.Resources == b.Resources)
	differ("labels", maps.Equal(a.Labels, b.Labels))
	differ("annotations", maps.Equal(a.Annotations, b.Annotations))
	differ("priority", a.Priority == b.Priority)
	differ("timeout", a.Timeout == b.Timeout)
	differ("queue_timeout", a.QueueTimeout == b.QueueTimeout)
	differ("retry", a.Retry.Equal(b.Retry))
	differ("placement", a.Placement.Provider == b.Placement.Provider &&
		a.Placement.PreferredProvider == b.Placement.PreferredProvider && maps.Equal(a.Placement.RequiredLabels, b.Placement.RequiredLabels))
	differ("description", a.Description == b.Description)
	differ("tags", slices.Equal(a.Tags, b.Tags))
	return out
}
