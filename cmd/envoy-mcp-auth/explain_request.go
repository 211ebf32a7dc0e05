package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// errRecording is what is said of a file that is no recorded request. What
// stands in it is not repeated: it may be a secret.
var errRecording = errors.New("--request: want an HTTP/1.1 request as it was sent: POST /path HTTP/1.1, the headers, an empty line and the body")

// recorded is a request out of a file.
type recorded struct {
	method  string
	headers []policy.Header
	body    []byte // nil without one
}

// readRequest reads a recorded request, with all its headers in their order and
// as often as they came: a second one may be what decided.
func readRequest(path string, in io.Reader) (*recorded, error) {
	b, err := readInput("--request", path, in, policy.MaxBody+1<<20)
	if err != nil {
		return nil, err
	}
	return parseRequest(b)
}

func parseRequest(b []byte) (*recorded, error) {
	line, rest, _ := bytes.Cut(b, []byte("\n"))
	words := strings.Fields(string(line))
	if len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/") {
		return nil, errRecording
	}
	r := &recorded{method: words[0], headers: []policy.Header{{Name: ":path", Value: []byte(words[1])}}}
	length := -1
	for {
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(bytes.TrimSpace(name)) != len(name) || len(name) == 0 {
			return nil, errRecording
		}
		h := policy.Header{Name: strings.ToLower(string(name)), Value: bytes.TrimSpace(value)}
		switch h.Name {
		case "transfer-encoding":
			return nil, errors.New("--request: the body is recorded in chunks; give it whole with --body FILE and the headers with -H")
		case "content-length":
			if n, err := strconv.Atoi(string(h.Value)); err == nil && n >= 0 {
				length = n
			}
		}
		r.headers = append(r.headers, h)
	}
	switch {
	case length > len(rest):
		return nil, fmt.Errorf("--request: content-length is %d, and the file has %d bytes of body; record it whole", length, len(rest))
	case length >= 0:
		rest = rest[:length]
	}
	if len(rest) > 0 {
		r.body = rest
	}
	return r, nil
}
