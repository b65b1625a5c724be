package main

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	tests := []struct {
		name  string
		input string
		want  summary
		says  []string
	}{
		{
			name: "passing tests are one line a package",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"p","Elapsed":0.2}`,
			want: summary{passed: 1},
			says: []string{"ok    p", "1 passed, 0 failed, 0 skipped"},
		},
		{
			name: "a failure is shown in full",
			input: `{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"fail","Package":"p","Elapsed":0.2}`,
			want: summary{failed: 1},
			says: []string{"FAIL  p", "=== p TestA", "a_test.go:3: got 1, want 2"},
		},
		{
			name: "a skip gives its reason",
			input: `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: needs docker\n"}
{"Action":"skip","Package":"p","Test":"TestA","Elapsed":0}
{"Action":"pass","Package":"p","Elapsed":0.2}`,
			want: summary{skipped: 1},
			says: []string{"p TestA: a_test.go:3: needs docker"},
		},
		{
			name: "a package that does not build counts as one failure",
			input: `{"ImportPath":"p [p.test]","Action":"build-output","Output":"x.go:1: undefined: y\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}`,
			want: summary{failed: 1},
			says: []string{"x.go:1: undefined: y", "0 passed, 1 failed"},
		},
		{
			name: "a crash names the test that did not end",
			input: `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t1.0s\n"}
{"Action":"fail","Package":"p","Elapsed":1}`,
			want: summary{failed: 1},
			says: []string{"--- TestA did not end", "panic: test timed out"},
		},
		{
			name:  "what is no event is passed on",
			input: "go: downloading something\n",
			says:  []string{"go: downloading something"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			got, err := summarize(strings.NewReader(tt.input), &out)
			if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("counted %+v, want %+v", got, tt.want)
			}
			for _, s := range tt.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("the report lacks %q:\n%s", s, out.String())
				}
			}
		})
	}
}
