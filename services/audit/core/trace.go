// Package core holds the audit's decisions, pure: how events become the tree of
// what caused what.
package core

import "slices"

// Link is what a tree needs of an event.
type Link struct {
	ID, CausationID string
	Position        int64
}

// Node is one event of a tree, in the order to print.
type Node struct {
	// Index is the event's in the list that the tree was made from.
	Index int
	// Depth is 0 for what nothing in the list caused.
	Depth int
}

// Tree orders events by what caused what: each after its cause, one deeper, and
// siblings by position. An event whose cause is not in the list, or claims to
// come later than it, is a root.
func Tree(links []Link) []Node {
	byID := make(map[string]int, len(links))
	for i, l := range links {
		byID[l.ID] = i
	}
	const root = -1
	children := map[int][]int{}
	order := make([]int, len(links))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return int(links[a].Position - links[b].Position) })
	for _, i := range order {
		parent, ok := byID[links[i].CausationID]
		if !ok || links[parent].Position >= links[i].Position {
			parent = root
		}
		children[parent] = append(children[parent], i)
	}
	// A stack, because a chain of causes may be as long as the list.
	out := make([]Node, 0, len(links))
	var stack []Node
	push := func(of, depth int) {
		for _, i := range slices.Backward(children[of]) {
			stack = append(stack, Node{Index: i, Depth: depth})
		}
	}
	push(root, 0)
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		out = append(out, n)
		push(n.Index, n.Depth+1)
	}
	return out
}
