package core_test

import (
	"errors"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/services/scheduler/core"
)

func code(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Exhausted && e.RetryAfter > 0 && e.Advice != "" {
		return e.Code
	}
	return ""
}

func TestAdmissionLimits(t *testing.T) {
	a := core.NewAdmission(core.Limits{Jobs: 5, NamespaceJobs: 3, IntakeBytes: 100})
	a.Observe(10, map[string]int64{"a": 2, "b": 1})
	take := func(ns string, bytes int64, want string) {
		t.Helper()
		if err := a.Admit(ns, bytes); code(err) != want || (err == nil) != (want == "") {
			t.Errorf("a job of %s: %v, want %q", ns, err, want)
		}
	}
	take("a", 90, "") // a: 3 with the one on its way
	take("a", 5, "NAMESPACE_JOBS_LIMIT")
	take("b", 50, "INTAKE_LIMIT")
	take("b", 10, "") // 5 in all
	take("c", 0, "JOBS_LIMIT")
	a.Settle("a", 90, 0) // it did not get into the log
	take("c", 80, "")
	a.Settle("b", 10, 14)
	a.Settle("c", 80, 16)
	take("c", 1000, "JOBS_LIMIT")
	a.Observe(14, map[string]int64{"a": 1, "b": 1}) // others have ended; c's is behind
	if a.Behind() != 1 {
		t.Errorf("%d jobs behind the reading", a.Behind())
	}
	take("c", 1000, "") // one job may always be on its way
	take("c", 1, "INTAKE_LIMIT")
}

func TestAdmissionWithoutLimits(t *testing.T) {
	a := core.NewAdmission(core.Limits{})
	for i := range int64(1000) {
		if err := a.Admit("a", 1<<20); err != nil {
			t.Fatal(err)
		}
		a.Settle("a", 1<<20, i+1)
	}
	if a.Behind() != 0 {
		t.Errorf("%d jobs are remembered for nothing", a.Behind())
	}
}
