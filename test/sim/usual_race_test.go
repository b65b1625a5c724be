//go:build race

package sim

// usual is few with the race detector: it is slow here and has nothing to find, because
// one goroutine runs at a time.
const usual = 12
