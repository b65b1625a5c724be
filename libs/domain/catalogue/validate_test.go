package catalogue_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hodei.dev/libs/domain/catalogue"
	"hodei.dev/libs/domain/fault"
)

func TestValidateTakesEveryGoldenFile(t *testing.T) {
	for _, e := range catalogue.Entries {
		data, err := os.ReadFile(filepath.Join("testdata", "events", e.Type+".v1.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := catalogue.Validate(e.Type, 1, data); err != nil {
			t.Errorf("%s: %v", e.Type, err)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	for name, c := range map[string]struct{ typ, data, want string }{
		"wrong type":    {"StateTimedOut", `{"state":"RUNNING","threshold":"1s","elapsed":"2s","kind":"state","recovery":"x","attempt":"two"}`, "attempt: a string where a number belongs"},
		"unknown field": {"StateTimedOut", `{"state":"RUNNING","threshold":"1s","elapsed":"2s","kind":"state","recovery":"x","atempt":2}`, "atempt: the type has no such field"},
		"missing field": {"StateTimedOut", `{"state":"RUNNING","threshold":"1s","elapsed":"2s","kind":"state"}`, "recovery: missing"},
		"null":          {"ProviderHealthChanged", `{"from":null,"to":"HEALTHY","reason":""}`, "from: is null"},
		"embedded":      {"DeadLetterRecorded", `{}`, "position: missing"},
		"no object":     {"DeadLetterReplayed", `null`, "data: not a JSON object"},
		"two":           {"DeadLetterReplayed", `{} {}`, "data: one JSON object"},
		"no JSON":       {"DeadLetterReplayed", `{`, "data: unexpected"},
		"unknown type":  {"NoSuchEvent", `{}`, "is not known here"},
	} {
		err := catalogue.Validate(c.typ, 1, []byte(c.data))
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
