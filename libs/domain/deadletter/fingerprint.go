package deadletter

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
)

// What differs from one occurrence of an error to the next: text in quotes, ids,
// numbers.
var (
	quoted  = regexp.MustCompile("\"(?:[^\"\\\\]|\\\\.)*\"|`[^`]*`|'[^']*'")
	uuids   = regexp.MustCompile(`[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}`)
	hexes   = regexp.MustCompile(`\b(?:0x[0-9A-Fa-f]+|[0-9A-Fa-f]{12,})\b`)
	numbers = regexp.MustCompile(`[+-]?\d+(?:[.:,]\d+)*`)
	spaces  = regexp.MustCompile(`\s+`)
)

// Normalise replaces in an error text what differs between occurrences of the
// same error, so that the same text means the same cause. It is idempotent.
func Normalise(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = quoted.ReplaceAllString(text, "<text>")
	text = uuids.ReplaceAllString(text, "<id>")
	text = hexes.ReplaceAllString(text, "<hex>")
	text = numbers.ReplaceAllString(text, "<n>")
	return strings.TrimSpace(spaces.ReplaceAllString(text, " "))
}

// Fingerprint names the errors of one cause: same consumer, same event type, same
// normalised text.
func Fingerprint(consumer, eventType, text string) string {
	sum := sha256.Sum256([]byte(consumer + "\x00" + eventType + "\x00" + Normalise(text)))
	return hex.EncodeToString(sum[:6])
}
