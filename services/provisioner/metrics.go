package provisioner

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"hodei.dev/libs/platform/telemetry"
	"hodei.dev/services/provisioner/internal/app"
)

// observe shows which alerts stand, by provider.
func observe(tel *telemetry.Telemetry, engine *app.Engine) error {
	_, err := tel.Meter("hodei.dev/services/provisioner").Int64ObservableGauge("hodei.provisioner.alerts",
		metric.WithDescription("Alerts of providers that stand, by alert and provider; absent where there are none."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			for name, raised := range engine.Alerts() {
				for _, r := range raised {
					o.Observe(1, metric.WithAttributes(attribute.String("alert", string(r.Alert)), attribute.String("provider", name)))
				}
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("make the instruments: %w", err)
	}
	return nil
}
