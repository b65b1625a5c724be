//go:build !race

package sim

// usual is how many seeds a run without flags plays.
const usual = 200
