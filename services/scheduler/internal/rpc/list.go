package rpc

import (
	"strings"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
	"hodei.dev/services/scheduler/internal/postgres"
)

// The size of a page of a list.
const (
	defaultPage = 100
	maxPage     = 1000
)

// listFilter reads a list request; the error names every wrong field.
func listFilter(in *schedulerv1.ListJobsRequest) (postgres.Filter, error) {
	var wrong fault.Fields
	f := postgres.Filter{
		Namespace: in.GetNamespace(), Labels: in.GetLabels(), IDPrefix: strings.ToLower(strings.ReplaceAll(in.GetIdPrefix(), "-", "")),
		Limit: int(in.GetPageSize()), Token: in.GetPageToken(),
	}
	for _, text := range in.GetStates() {
		state := job.State(strings.ToUpper(text))
		if !job.Transitions.Known(state) {
			names := make([]string, len(job.Transitions.States))
			for i, s := range job.Transitions.States {
				names[i] = string(s)
			}
			wrong.Add("states", "%q is not a state: use %s", clip(text), strings.Join(names, ", "))
		}
		f.States = append(f.States, string(state))
	}
	if f.Namespace != "" && !job.ValidNamespace(f.Namespace) {
		wrong.Add("namespace", "%q: a DNS label: 1 to 63 lower-case letters, digits or '-'", clip(f.Namespace))
	}
	for k, v := range f.Labels {
		if strings.ContainsRune(k+v, 0) {
			wrong.Add("labels", "contain a NUL byte")
		}
	}
	if len(f.IDPrefix) > 32 || strings.Trim(f.IDPrefix, "0123456789abcdef") != "" {
		wrong.Add("id_prefix", "%q: up to 32 hexadecimal digits", clip(in.GetIdPrefix()))
	}
	if t := in.GetSince(); t != nil {
		if err := t.CheckValid(); err != nil {
			wrong.Add("since", "not a time: %s", err)
		}
		f.Since = t.AsTime()
	}
	if t := in.GetUntil(); t != nil {
		if err := t.CheckValid(); err != nil {
			wrong.Add("until", "not a time: %s", err)
		}
		f.Until = t.AsTime()
	}
	if in.GetSince() != nil && in.GetUntil() != nil && !f.Since.Before(f.Until) {
		wrong.Add("until", "is not after since")
	}
	switch {
	case f.Limit == 0:
		f.Limit = defaultPage
	case f.Limit < 0 || f.Limit > maxPage:
		wrong.Add("page_size", "%d: from 1 to %d, or 0 for %d", f.Limit, maxPage, defaultPage)
	}
	return f, wrong.Err("the list")
}
