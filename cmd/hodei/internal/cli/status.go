package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hodei.dev/cmd/hodei/internal/render"
	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/job"
	"hodei.dev/libs/domain/worker"
	auditv1 "hodei.dev/proto/hodei/audit/v1"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
	registryv1 "hodei.dev/proto/hodei/registry/v1"
	schedulerv1 "hodei.dev/proto/hodei/scheduler/v1"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "say how the platform is, on one page",
		Long: `Status prints the services with their lags, the jobs and the workers by state, and the
dead letters. It ends with 1 where a service is not ready or could not be asked.`,
		Example: "  hodei status\n  hodei status -o json | jq '.services[] | select(.ready | not)'",
		Args:    none(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, r, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			s, err := a.survey(ctx, r)
			if err != nil {
				return err
			}
			if a.json() {
				err = a.surveyJSON(s)
			} else {
				err = a.surveyText(s)
			}
			if err != nil {
				return err
			}
			if !s.well() {
				return exitError(exitFailed)
			}
			return nil
		},
	}
}

// survey is the platform on one page.
type survey struct {
	services    []*platformv1.ServiceStatus
	queue       map[string]int64
	workers     map[string]int64
	deadLetters map[string]int64
	// problems: what could not be asked, and why.
	problems map[string]string
}

func (s *survey) well() bool {
	for _, v := range s.services {
		if !v.GetReady() {
			return false
		}
	}
	return len(s.problems) == 0
}

// survey asks everybody. Only a server that does not answer at all is an error.
func (a *app) survey(ctx context.Context, r *remote) (*survey, error) {
	s := &survey{queue: map[string]int64{}, workers: map[string]int64{}, deadLetters: map[string]int64{}, problems: map[string]string{}}
	st, err := r.status.GetStatus(ctx, &platformv1.GetStatusRequest{})
	if e, ok := errors.AsType[*fault.Error](err); ok && a.unreachable(e) {
		return nil, err
	}
	s.note("services", err)
	s.services = st.GetServices()
	queue, err := r.jobs.GetQueue(ctx, &schedulerv1.GetQueueRequest{})
	s.note("queue", err)
	if err == nil && queue.GetJobs() != nil {
		s.queue = queue.GetJobs()
	}
	s.note("workers", s.countWorkers(ctx, r))
	dead, err := r.dead.ListDeadLetters(ctx, &auditv1.ListDeadLettersRequest{Limit: 1})
	s.note("dead letters", err)
	if err == nil && dead.GetCounts() != nil {
		s.deadLetters = dead.GetCounts()
	}
	return s, ctx.Err()
}

func (s *survey) note(what string, err error) {
	if err != nil {
		s.problems[what] = err.Error()
	}
}

func (s *survey) countWorkers(ctx context.Context, r *remote) error {
	req := &registryv1.ListWorkersRequest{PageSize: pageSize}
	for {
		resp, err := r.workers.ListWorkers(ctx, req)
		if err != nil {
			return err
		}
		for _, w := range resp.GetWorkers() {
			s.workers[w.GetState()]++
		}
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return nil
		}
	}
}

func (a *app) surveyJSON(s *survey) error {
	services := make([]rawJSON, len(s.services))
	for i, v := range s.services {
		services[i] = render.Compact(v)
	}
	data, err := marshal(struct {
		Services    []rawJSON         `json:"services"`
		Queue       map[string]int64  `json:"queue"`
		Workers     map[string]int64  `json:"workers"`
		DeadLetters map[string]int64  `json:"dead_letters"`
		Problems    map[string]string `json:"problems"`
	}{services, s.queue, s.workers, s.deadLetters, s.problems})
	if err != nil {
		return err
	}
	return render.Raw(a.out, data)
}

// rawJSON is JSON already.
type rawJSON []byte

// MarshalJSON returns what it is.
func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

func (a *app) surveyText(s *survey) error {
	now := a.now()
	t := render.NewTable(a.out, "SERVICE", "STATE", "ROLE", "POSITION", "LAG", "DEAD", "UP", "FIGURES")
	for _, v := range s.services {
		t.Add(
			v.GetName(), stateOfService(v), v.GetRole(), fmt.Sprint(v.GetPosition()), fmt.Sprint(v.GetLag()), fmt.Sprint(v.GetDeadLetters()),
			render.Age(now, v.GetStartedAt()), figures(v.GetFigures()),
		)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var sheet render.Sheet
	sheet.Add("jobs", "%s", counts(s.queue, job.Transitions.States))
	sheet.Add("workers", "%s", counts(s.workers, worker.Transitions.States))
	dead := "none"
	if text := figures(s.deadLetters); text != "" {
		dead = text + "; see `hodei dlq list`"
	}
	sheet.Add("dead letters", "%s", dead)
	for _, k := range sortedKeys(s.problems) {
		sheet.Add("cannot tell "+k, "%s", s.problems[k])
	}
	if _, err := fmt.Fprintln(a.out); err != nil {
		return err
	}
	return sheet.Print(a.out)
}

func stateOfService(v *platformv1.ServiceStatus) string {
	state := "ready"
	switch {
	case v.GetUnreachable():
		state = "unreachable"
	case !v.GetReady():
		state = "not ready"
	}
	for _, k := range sortedKeys(v.GetProblems()) {
		state += ", " + k + ": " + v.GetProblems()[k]
	}
	return state
}

// figures are counts that are not 0, as "a=1 b=2". What is about the process and
// not the service is for machines.
func figures(m map[string]int64) string {
	var out []string
	for _, k := range sortedKeys(m) {
		if m[k] != 0 && !strings.HasPrefix(k, "process_") {
			out = append(out, fmt.Sprintf("%s=%d", k, m[k]))
		}
	}
	return strings.Join(out, " ")
}

// counts are numbers by state, in the order of life.
func counts[S ~string](m map[string]int64, order []S) string {
	var out []string
	for _, s := range order {
		if n := m[string(s)]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
