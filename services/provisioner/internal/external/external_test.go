package external_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"hodei.dev/libs/domain/fault"
	"hodei.dev/libs/domain/provider"
	"hodei.dev/services/provisioner/internal/app"
	"hodei.dev/services/provisioner/internal/external"
	"hodei.dev/services/provisioner/internal/providertest"
)

func withFate(f app.Fate) *external.Provider {
	return external.New(external.Config{Fate: func(context.Context, string) (app.Fate, error) { return f, nil }})
}

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, providertest.Subject{Kind: provider.External, New: func(*testing.T) app.Provider { return withFate(app.Fate{}) }})
}

func TestCreateIsPendingUntilRegistered(t *testing.T) {
	t.Parallel()
	for registered, pending := range map[bool]bool{false: true, true: false} {
		r, err := withFate(app.Fate{Registered: registered}).Create(t.Context(), app.WorkerSpec{WorkerID: "w"})
		if err != nil || r.Pending != pending {
			t.Errorf("registered %v: pending %v, %v", registered, r.Pending, err)
		}
	}
}

func TestDestroy(t *testing.T) {
	t.Parallel()
	now := time.Now()
	soon, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		fate app.Fate
		want error
	}{
		"never came":                    {app.Fate{Condemned: now}, nil},
		"said goodbye":                  {app.Fate{Registered: true, Goodbye: true, Condemned: now}, nil},
		"its lease has run out":         {app.Fate{Registered: true, Condemned: now.Add(-external.Fence)}, nil},
		"may still run something":       {app.Fate{Registered: true, Condemned: now}, context.Canceled},
		"is not given up":               {app.Fate{Registered: true}, fault.Precondition},
		"said goodbye without a reason": {app.Fate{Registered: true, Goodbye: true}, nil},
	} {
		ctx := t.Context()
		if errors.Is(c.want, context.Canceled) {
			ctx = soon
		}
		if err := withFate(c.fate).Destroy(ctx, "w"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
