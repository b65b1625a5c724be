package relay_test

import (
	"testing"

	"hodei.dev/libs/eventing/eventingtest"
	platformv1 "hodei.dev/proto/hodei/platform/v1"
)

// Whoever is asked, the lag is the stream's and not that of a replica that has
// published nothing itself.
func TestAStandbySaysHowFarTheStreamIs(t *testing.T) {
	w := newWorld(t)
	w.queue(10)
	w.reader().has()
	w.start() // a second one; w.status is its door now
	eventingtest.Eventually(t, "a standby without a lag", func() bool {
		out, err := w.status.GetStatus(t.Context(), &platformv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		s := out.GetServices()[0]
		return s.GetRole() == "standby" && s.GetLag() == 0 && s.GetPosition() == w.head()
	})
}
