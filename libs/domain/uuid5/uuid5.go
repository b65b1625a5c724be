// Package uuid5 derives ids from names, so that the same name is the same aggregate
// for ever and whoever knows the name knows the id.
package uuid5

import (
	"crypto/sha1"
	"encoding/hex"
)

// New returns the UUID version 5 of a name in a namespace.
func New(namespace [16]byte, name string) string {
	h := sha1.New() // as UUID version 5 is defined; nothing is protected by it
	h.Write(namespace[:])
	h.Write([]byte(name))
	id := h.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	s := hex.EncodeToString(id)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
