package core

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"hodei.dev/libs/domain/fault"
)

// Limits of the words that an agent registers with.
const (
	// DefaultTokenTTL is how long a registration token is good for.
	DefaultTokenTTL = 5 * time.Minute
	// MaxTokenTTL bounds what may be asked for.
	MaxTokenTTL = 24 * time.Hour
	// MaxNonce is the most bytes of a nonce.
	MaxNonce = 128
)

// Token is what is stored about a worker's registration token.
type Token struct {
	// Hash is of the token; the token itself is stored nowhere.
	Hash      []byte
	ExpiresAt time.Time
	// Nonce is of the agent that used it; empty while unused.
	Nonce string
}

// HashSecret is the form in which a token or a session's secret is stored. Both
// are random enough that a plain hash reveals nothing.
func HashSecret(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// SessionSecret derives a session's secret from what the agent proved itself
// with: whoever repeats the registration gets the same, and nothing in clear
// needs to be kept.
func SessionSecret(workerID, token, nonce string) string {
	mac := hmac.New(sha256.New, []byte(token))
	mac.Write([]byte("hodei-session\x00" + workerID + "\x00" + nonce))
	return hex.EncodeToString(mac.Sum(nil))
}

// Admit decides whether an agent that shows a token may have a session: nil, or
// a Denied error that says why not, for the operator.
func (t Token) Admit(token, nonce string, now time.Time) error {
	switch {
	case len(t.Hash) == 0:
		return refuse("no token was issued for this worker")
	case !hmac.Equal(t.Hash, HashSecret(token)):
		return refuse("the token is not this worker's, or a newer one was issued")
	case t.Nonce != "" && t.Nonce != nonce:
		return refuse("the token has been used")
	case t.Nonce == "" && !now.Before(t.ExpiresAt):
		return refuse("the token has expired")
	}
	return nil
}

func refuse(why string) error {
	return fault.New(fault.Denied, "%s", why).WithCode("TOKEN_REFUSED", "a token is good for one registration of one worker, for a short time: get a new one")
}
