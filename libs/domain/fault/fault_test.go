package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"hodei.dev/libs/domain/fault"
)

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want fault.Kind
	}{
		{fault.New(fault.Conflict, "x"), fault.Conflict},
		{fmt.Errorf("loading: %w", fault.New(fault.NotFound, "x")), fault.NotFound},
		{fault.Wrap(fault.Unavailable, fault.New(fault.NotFound, "x"), "y"), fault.Unavailable},
		{fault.Wrap(fault.Conflict, fault.NotFound, "y"), fault.Conflict},
		{fmt.Errorf("z: %w", fault.Denied), fault.Denied},
		{io.EOF, fault.Internal},
	} {
		if got := fault.KindOf(c.err); got != c.want {
			t.Errorf("%v: %s, want %s", c.err, got, c.want)
		}
		if c.want != fault.Internal && !errors.Is(c.err, c.want) {
			t.Errorf("%v is not %s", c.err, c.want)
		}
	}
}

func TestFieldsSayAllAtOnce(t *testing.T) {
	var f fault.Fields
	if f.Err("the job") != nil {
		t.Error("no field is wrong and it fails")
	}
	f.Add("name", "missing")
	f.Add("timeout", "%d: too long", 9)
	if got := f.Err("the job").Error(); got != "the job is not valid: name: missing; timeout: 9: too long" {
		t.Error(got)
	}
}
