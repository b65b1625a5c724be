package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestSubmitFile(t *testing.T) {
	s := serve(t, newWorld())
	const id = "0198c2e1-7b60-7d3f-b5a0-0f6f1d3c2b1"
	file := `{"id":"` + id + `1","name":"a","command":["sh","-c","true"],"env":{"A":"b"},"timeout":"30s"}

{"command":["x"],"comand":1}
{"id":"` + id + `2","name":"refused","command":["x"]}
{"id":"` + id + `3","retry":{"tries":1}}
not json
{"priority":"high"}
[1]
{"id":"` + id + `4","script":{"interpreter":"sh","content":"true"},"namespace":"ns"}`
	got := s.begin(file, "submit", "--file", "-", "--namespace", "web").wait()
	got.want(t, 1, id+"1\n"+id+"4\n")
	contains(t, got.stderr,
		"line 3: unknown field comand; there are: id name", "line 4: the job is not valid: name: is refused", "line 5: unknown field retry.tries; there are: max_attempts",
		"line 6: not JSON", "line 7: ", "priority", "line 8: not an object", "2 jobs queued, 6 lines refused",
	)
	if s.w.specs[0].GetNamespace() != "web" || s.w.specs[1].GetNamespace() != "ns" || s.w.specs[0].GetTimeout() != "30s" {
		t.Errorf("%v", s.w.specs)
	}
	got = s.begin(file, "submit", "--file", "-", "-o", "json").wait()
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if len(lines) != 8 {
		t.Fatalf("%d lines: %s", len(lines), got.stdout)
	}
	contains(t, lines[0], `{"line":1,"index":0,"job_id":"`+id+`1","existed":true,"error":"","kind":"","retry_after":""}`)
	contains(t, lines[1], `{"line":3,"index":-1,"job_id":"","existed":false,"error":"unknown field comand`)
}

func TestSubmitFileNamesTheFieldOfAnotherShape(t *testing.T) {
	for line, want := range map[string]string{
		`{"command":"true"}`:                              "field command: a list",
		`{"command":[1]}`:                                 "command",
		`{"command":["true"],"env":["A=b"]}`:              "field env: an object",
		`{"command":["true"],"env":{"A":1}}`:              "line 1: ",
		`{"command":["true"],"timeout":30}`:               "field timeout: a string",
		`{"command":["true"],"retry":3}`:                  "field retry: an object",
		`{"command":["true"],"placement":{"provider":1}}`: "field placement.provider: a string",
	} {
		got := serve(t, newWorld()).begin(line, "submit", "--file", "-").wait()
		got.want(t, 1, "")
		contains(t, got.stderr, want)
	}
}

func TestSubmitFileTakesPlacementAndWhatIsForPeople(t *testing.T) {
	s := serve(t, newWorld())
	got := s.begin(`{"command":["true"],"description":"d e","tags":["a b","c"],"placement":{"preferred_provider":"p","required_labels":{"zone":"a"}}}`, "submit", "--file", "-").wait()
	if got.code != 0 || len(s.w.specs) != 1 {
		t.Fatalf("%+v", got)
	}
	spec := s.w.specs[0]
	if p := spec.GetPlacement(); spec.GetDescription() != "d e" || !slices.Equal(spec.GetTags(), []string{"a b", "c"}) || p.GetPreferredProvider() != "p" || !maps.Equal(p.GetRequiredLabels(), map[string]string{"zone": "a"}) {
		t.Errorf("%v", spec)
	}
	for line, want := range map[string]string{
		`{"command":["true"],"tags":"a"}`:                             "field tags: a list",
		`{"command":["true"],"placement":{"required_labels":["a"]}}`:  "field placement.required_labels: an object",
		`{"command":["true"],"placement":{"preferred":"x"}}`:          "unknown field placement.preferred; there are: ",
		`{"command":["true"],"placement":{"preferred_provider":[1]}}`: "field placement.preferred_provider: a string",
	} {
		got := serve(t, newWorld()).begin(line, "submit", "--file", "-").wait()
		got.want(t, 1, "")
		contains(t, got.stderr, want)
	}
}

func TestSubmitManyInOrder(t *testing.T) {
	for name, breaks := range map[string]int{"a good server": 0, "answers are lost": 3} {
		t.Run(name, func(t *testing.T) {
			const jobs = 25_000
			w := newWorld()
			w.batchBreak = breaks
			var file, ids strings.Builder
			for i := range jobs {
				id := fmt.Sprintf("0198c2e1-7b60-7d3f-b5a0-%012d", i)
				fmt.Fprintf(&file, "{\"id\":%q,\"command\":[\"true\"]}\n", id)
				ids.WriteString(id + "\n")
			}
			if testing.Short() {
				t.Skip("many jobs")
			}
			got := serve(t, w).begin(file.String(), "submit", "--file", "-").wait()
			if got.code != 0 || got.stdout != ids.String() {
				t.Errorf("code %d, %d bytes, stderr %q", got.code, len(got.stdout), got.stderr)
			}
			if len(w.specs) != jobs {
				t.Errorf("%d jobs", len(w.specs))
			}
		})
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{"2": 2000, "0.5": 500, "500m": 500, "1.25": 1250, "0": 0, "": -1, "x": -1, "-1": -1, "0.0005": -1, "1e9": -1, "0.5m": -1} {
		if got, err := cores(text); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("cores %q: %d, %v", text, got, err)
		}
	}
	for text, want := range map[string]int64{
		"256Mi": 256 << 20, "1G": 1e9, "1048576": 1 << 20, "1.5Gi": 3 << 29, "4k": 4000, "1GiB": 1 << 30, "1T": 1e12, "100000T": 1e17,
		"": -1, "Mi": -1, "-5": -1, "1.5": -1, "1 Gi": -1, "99999999T": -1,
	} {
		if got, err := memory(text); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("memory %q: %d, %v", text, got, err)
		}
	}
}
