// Package e2e tries the eight binaries as separate processes, as a user would,
// and kills each of them on the way.
package e2e

import (
	"os"
	"testing"

	"hodei.dev/libs/eventing/eventingtest"
)

func TestMain(m *testing.M) { os.Exit(eventingtest.Main(m)) }
