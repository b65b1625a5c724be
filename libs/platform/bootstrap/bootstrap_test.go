package bootstrap_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/platform/bootstrap"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	want := bootstrap.Bootstrap{
		WorkerID: "w", Token: "secret", AgentAddress: "127.0.0.1:7434", WorkDir: "/x",
		RunAs:  &bootstrap.User{UID: 5, GID: 6, Groups: []uint32{7}, Name: "jo", Home: "/home/jo"},
		Limits: bootstrap.Limits{CPUMillis: 500, MemoryBytes: 1 << 20, MemoryEnforced: true},
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := bootstrap.Write(w, want); err != nil {
		t.Fatal(err)
	}
	w.Close()
	fd, err := dup(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := bootstrap.Read(fd)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, %v", got, err)
	}
	if text := fmt.Sprint(got, got.LogValue()); strings.Contains(text, "secret") {
		t.Fatalf("the token is printed: %s", text)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty": "", "not JSON": "hello", "incomplete": `{"worker_id":"w"}`, "too long": strings.Repeat("x", bootstrap.MaxBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString(text); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Seek(0, 0); err != nil {
				t.Fatal(err)
			}
			fd, err := dup(f)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bootstrap.Read(fd); !errors.Is(err, fault.Invalid) {
				t.Fatalf("got %v, want Invalid", err)
			}
		})
	}
	if err := bootstrap.Write(&bytes.Buffer{}, bootstrap.Bootstrap{}); !errors.Is(err, fault.Invalid) {
		t.Fatalf("got %v, want Invalid", err)
	}
}
