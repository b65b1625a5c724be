package store

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// Postgres's json keeps any JSON byte for byte, but its jsonb, through which
// auditors query, refuses NUL, halves of surrogate pairs and numbers beyond its
// numeric. One such event would make the whole view fail, so it must not get in.

// jsonIssue is what is wrong with a document, and where: ".env.FOO", "[3]".
type jsonIssue struct{ path, what string }

// badUTF8 makes jsonPath look for invalid UTF-8 instead.
const badUTF8 = "utf8"

// maxExponent keeps numbers within Postgres's numeric (131,072 digits before the
// point, 16,383 after it).
const maxExponent = 9999

// maxNumber is the most characters of one number, for the same reason.
const maxNumber = 9999

// jsonProblem finds the first part of a valid document that jsonb would refuse.
func jsonProblem(data []byte) (jsonIssue, bool) {
	if !suspicious(data) {
		return jsonIssue{}, false
	}
	w := jsonWalker{data: data}
	w.value("")
	return w.issue, w.issue.what != ""
}

// jsonPath returns where a document has what is looked for; "" where that cannot
// be told.
func jsonPath(data []byte, what string) string {
	w := jsonWalker{data: data, utf8: what == badUTF8}
	w.value("")
	return w.issue.path
}

// suspicious reports whether data may have something that jsonb refuses. It is
// quick and errs on the side of true.
func suspicious(data []byte) bool {
	if bytes.Contains(data, []byte(`\u0000`)) || bytes.Contains(data, []byte(`\ud`)) || bytes.Contains(data, []byte(`\uD`)) {
		return true
	}
	digits := 0
	for i, c := range data {
		switch {
		case c >= '0' && c <= '9' || c == '.' || c == '-' || c == '+':
			if digits++; digits > maxNumber {
				return true
			}
		case (c == 'e' || c == 'E') && i > 0 && data[i-1] >= '0' && data[i-1] <= '9':
			return true
		default:
			digits = 0
		}
	}
	return false
}

// jsonWalker goes through a document and remembers the first issue. It never
// reads beyond the end, whatever the document.
type jsonWalker struct {
	data  []byte
	at    int
	utf8  bool
	depth int
	issue jsonIssue
}

func (w *jsonWalker) found(path, what string) {
	if w.issue.what == "" {
		w.issue = jsonIssue{path, what}
	}
}

func (w *jsonWalker) peek() byte {
	for w.at < len(w.data) {
		switch c := w.data[w.at]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			w.at++
		default:
			return c
		}
	}
	return 0
}

func (w *jsonWalker) value(path string) {
	if w.depth++; w.depth > 10000 || w.issue.what != "" {
		return
	}
	defer func() { w.depth-- }()
	switch w.peek() {
	case '{':
		w.at++
		for c := w.peek(); c == '"'; c = w.peek() {
			start := w.at
			name := w.text(path + ".(name)")
			if w.issue.what != "" || start == w.at {
				return
			}
			w.value(path + "." + name)
			if w.issue.what != "" {
				return
			}
		}
		w.at++
	case '[':
		w.at++
		for i := 0; ; i++ {
			if c := w.peek(); c == ']' || c == 0 || w.issue.what != "" {
				break
			}
			before := w.at
			w.value(path + "[" + strconv.Itoa(i) + "]")
			if w.at == before {
				return // not JSON
			}
		}
		w.at++
	case '"':
		w.text(path)
	case 0:
	default:
		w.scalar(path)
	}
}

// scalar passes a number, true, false or null.
func (w *jsonWalker) scalar(path string) {
	start := w.at
	for w.at < len(w.data) && bytes.IndexByte([]byte(" \t\r\n,:]}[{\""), w.data[w.at]) < 0 {
		w.at++
	}
	word := w.data[start:w.at]
	if len(word) == 0 || word[0] != '-' && (word[0] < '0' || word[0] > '9') {
		return
	}
	if i := bytes.IndexAny(word, "eE"); i >= 0 {
		exponent, err := strconv.Atoi(string(word[i+1:]))
		if err != nil || exponent > maxExponent || exponent < -maxExponent {
			w.found(path, "has a number whose exponent is beyond 9999")
		}
	}
	if len(word) > maxNumber {
		w.found(path, "has a number of more than 9999 digits")
	}
}

// text passes a string and returns its raw content.
func (w *jsonWalker) text(path string) string {
	w.at++
	start := w.at
	for w.at < len(w.data) {
		switch c := w.data[w.at]; {
		case c == '"':
			w.at++
			return string(w.data[start : w.at-1])
		case c == '\\' && w.at+1 < len(w.data) && w.data[w.at+1] == 'u':
			w.escape(path)
		case c == '\\':
			w.at += 2
		case c >= utf8.RuneSelf && w.utf8:
			r, size := utf8.DecodeRune(w.data[w.at:])
			if r == utf8.RuneError && size == 1 {
				w.found(path, "is not valid UTF-8")
			}
			w.at += size
		default:
			w.at++
		}
	}
	w.at = len(w.data)
	return ""
}

// escape passes \uXXXX, or a pair of them.
func (w *jsonWalker) escape(path string) {
	switch r := w.hex(w.at); {
	case r == 0:
		w.found(path, `contains NUL (\u0000)`)
	case r >= 0xd800 && r < 0xdc00:
		if low := w.hex(w.at + 6); low >= 0xdc00 && low < 0xe000 {
			w.at += 12
			return
		}
		w.found(path, "contains half of a surrogate pair")
	case r >= 0xdc00 && r < 0xe000:
		w.found(path, "contains half of a surrogate pair")
	}
	w.at += 6
}

// hex returns the code of the \uXXXX at i, or -1.
func (w *jsonWalker) hex(i int) int64 {
	if i+6 > len(w.data) || w.data[i] != '\\' || w.data[i+1] != 'u' {
		return -1
	}
	r, err := strconv.ParseUint(string(w.data[i+2:i+6]), 16, 32)
	if err != nil {
		return -1
	}
	return int64(r)
}
