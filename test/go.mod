module hodei.dev/test

go 1.26.0

require pgregory.net/rapid v1.3.0 // indirect

require hodei.dev/libs/domain v0.0.0

replace hodei.dev/libs/domain => ../libs/domain
