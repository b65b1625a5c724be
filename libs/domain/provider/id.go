package provider

import (
	"crypto/sha1"
	"encoding/hex"
)

// namespace is the UUID under which the names of providers become ids.
var namespace = [16]byte{0x5b, 0x1f, 0x0a, 0x66, 0x2d, 0x8c, 0x4d, 0x0e, 0x9a, 0x51, 0x3c, 0x70, 0xe4, 0x7b, 0x12, 0x9f}

// ID returns the id of the provider with a name: a UUID version 5, so that the
// same name is the same provider for ever, also where it is registered again.
func ID(name string) string {
	h := sha1.New() // as UUID version 5 is defined; nothing is protected by it
	h.Write(namespace[:])
	h.Write([]byte(name))
	id := h.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	s := hex.EncodeToString(id)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
