package core_test

import (
	"slices"
	"testing"

	"hodei.dev/services/audit/core"
)

func TestTree(t *testing.T) {
	for name, c := range map[string]struct {
		links []core.Link
		want  []core.Node
	}{
		"nothing": {nil, []core.Node{}},
		"a story": {
			[]core.Link{{"a", "", 1}, {"b", "a", 2}, {"c", "a", 3}, {"d", "b", 4}, {"e", "c", 5}, {"f", "d", 6}},
			[]core.Node{{0, 0}, {1, 1}, {3, 2}, {5, 3}, {2, 1}, {4, 2}},
		},
		"a cause elsewhere":      {[]core.Link{{"a", "x", 7}, {"b", "a", 9}}, []core.Node{{0, 0}, {1, 1}}},
		"out of order":           {[]core.Link{{"b", "a", 2}, {"a", "", 1}}, []core.Node{{1, 0}, {0, 1}}},
		"caused by what follows": {[]core.Link{{"a", "b", 1}, {"b", "a", 2}}, []core.Node{{0, 0}, {1, 1}}},
		"its own cause":          {[]core.Link{{"a", "a", 1}}, []core.Node{{0, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := core.Tree(c.links); !slices.Equal(got, c.want) {
				t.Errorf("Tree = %v, want %v", got, c.want)
			}
		})
	}
}

func TestTreeOfALongChain(t *testing.T) {
	links := make([]core.Link, 100_000)
	for i := range links {
		links[i] = core.Link{ID: string(rune(i + 1)), Position: int64(i + 1)}
		if i > 0 {
			links[i].CausationID = links[i-1].ID
		}
	}
	if got := core.Tree(links); len(got) != len(links) {
		t.Errorf("got %d of %d", len(got), len(links))
	}
}
