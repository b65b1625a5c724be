package provider

import "hodei.dev/libs/domain/uuid5"

// namespace is the UUID under which the names of providers become ids.
var namespace = [16]byte{0x5b, 0x1f, 0x0a, 0x66, 0x2d, 0x8c, 0x4d, 0x0e, 0x9a, 0x51, 0x3c, 0x70, 0xe4, 0x7b, 0x12, 0x9f}

// ID returns the id of the provider with a name: a UUID version 5, so that the
// same name is the same provider for ever, also where it is registered again.
func ID(name string) string { return uuid5.New(namespace, name) }
