module hodei.dev/services/relay

go 1.26.0

require (
	hodei.dev/libs/domain v0.0.0
	hodei.dev/libs/eventing v0.0.0
	hodei.dev/libs/platform v0.0.0
	hodei.dev/libs/service v0.0.0
	hodei.dev/proto v0.0.0
)

replace (
	hodei.dev/libs/domain => ../../libs/domain
	hodei.dev/libs/eventing => ../../libs/eventing
	hodei.dev/libs/platform => ../../libs/platform
	hodei.dev/libs/service => ../../libs/service
	hodei.dev/proto => ../../proto
)
