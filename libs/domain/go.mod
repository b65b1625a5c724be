module hodei.dev/libs/domain

go 1.26.0
