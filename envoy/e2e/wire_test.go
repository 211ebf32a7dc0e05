package e2e_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
)

// TestC8_Wire: what is malformed below HTTP is refused, or arrives clean.
func TestC8_Wire(t *testing.T) {
	r := start(t, standard)
	const head = "POST /alpha/mcp HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	const secret = "Bearer " + callerToken
	many := strings.Builder{}
	for range 120 {
		many.WriteString("x-many: 1\r\n")
	}
	rows := map[string]string{
		"obs-fold of authorization":  head + "authorization: Bearer\r\n " + callerToken + "\r\nContent-Length: 0\r\n\r\n",
		"obs-fold of cookie":         head + "cookie: session_id=1;\r\n\tt=" + canary + "\r\nContent-Length: 0\r\n\r\n",
		"obs-fold first":             "POST /alpha/mcp HTTP/1.1\r\n authorization: " + secret + "\r\nHost: x\r\n\r\n",
		"bare CR in a value":         head + "x-a: a\rauthorization: Bearer evil\r\nContent-Length: 0\r\n\r\n",
		"bare CR in a name":          head + "author\rization: " + secret + "\r\nContent-Length: 0\r\n\r\n",
		"bare LF lines":              "POST /alpha/mcp HTTP/1.1\nHost: x\nConnection: close\nauthorization: " + secret + "\nContent-Length: 0\n\n",
		"NUL in a value":             head + "x-a: a\x00" + canary + "\r\nContent-Length: 0\r\n\r\n",
		"NUL in a name":              head + "x-a\x00: " + canary + "\r\nContent-Length: 0\r\n\r\n",
		"blank before the colon":     head + "authorization : " + secret + "\r\nContent-Length: 0\r\n\r\n",
		"no colon":                   head + "authorization\r\nContent-Length: 0\r\n\r\n",
		"empty name":                 head + ": " + canary + "\r\nContent-Length: 0\r\n\r\n",
		"non-ASCII name":             head + "x-\xc3\xa4: " + canary + "\r\nContent-Length: 0\r\n\r\n",
		"TE and CL":                  head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\nGET /beta/mcp HTTP/1.1\r\nHost: x\r\n\r\n",
		"TE of another kind":         head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"TE twice":                   head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"two lengths":                head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		"a negative length":          head + "Content-Length: -1\r\n\r\n",
		"a length with a sign":       head + "Content-Length: +2\r\n\r\n{}",
		"a length that is none":      head + "Content-Length: 2x\r\n\r\n{}",
		"a bad chunk":                head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
		"a chunk with an extension":  head + "Transfer-Encoding: chunked\r\n\r\n2;x=" + "y" + "\r\n{}\r\n0\r\n\r\n",
		"a trailer with a secret":    head + "Transfer-Encoding: chunked\r\nTrailer: authorization\r\n\r\n2\r\n{}\r\n0\r\nauthorization: " + secret + "\r\ncookie: t=" + canary + "\r\n\r\n",
		"70 kB of headers":           head + "x-a: " + strings.Repeat("a", 70<<10) + "\r\nContent-Length: 0\r\n\r\n",
		"120 headers":                head + many.String() + "Content-Length: 0\r\n\r\n",
		"a line of 70 kB":            "POST /alpha/mcp?" + strings.Repeat("a", 70<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/0.9":                   "GET /alpha/mcp\r\n\r\n",
		"HTTP/1.0":                   "GET /alpha/mcp HTTP/1.0\r\nHost: x\r\nauthorization: " + secret + "\r\n\r\n",
		"HTTP/3.0":                   "GET /alpha/mcp HTTP/3.0\r\nHost: x\r\n\r\n",
		"an unknown method":          "BREW /alpha/mcp HTTP/1.1\r\nHost: x\r\nConnection: close\r\nauthorization: " + secret + "\r\n\r\n",
		"two blanks in the line":     "GET  /alpha/mcp HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"an upgrade":                 head + "Upgrade: websocket\r\nConnection: upgrade\r\nauthorization: " + secret + "\r\nContent-Length: 0\r\n\r\n",
		"an upgrade to h2c":          head + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nauthorization: " + secret + "\r\nContent-Length: 0\r\n\r\n",
		"a second request behind it": "POST /alpha/mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nauthorization: " + secret + "\r\n\r\n\r\n",
	}
	// Of a well-formed request, the service's credential arrives, and of no other.
	good := map[string]bool{"a chunk with an extension": true, "a second request behind it": true, "a trailer with a secret": true}
	for what, raw := range rows {
		_, got := r.lands(t, "alpha", what, func() reply { return r.h1(raw) })
		if good[what] && got.status != http.StatusOK {
			t.Errorf("%s: want 200, got %v", what, got)
		}
	}
}

// TestC8_Wire2 is the same for HTTP/2.
func TestC8_Wire2(t *testing.T) {
	r := start(t, standard)
	var wg sync.WaitGroup
	base := pairs{":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/alpha/mcp"}
	for what, fields := range map[string]pairs{
		"CR LF in a value":   append(pairs{}, append(base, "x-a", "b\r\nauthorization: Bearer "+callerToken)...),
		"LF in a value":      append(pairs{}, append(base, "x-a", "b\n"+canary)...),
		"NUL in a value":     append(pairs{}, append(base, "x-a", "b\x00"+canary)...),
		"upper case":         append(pairs{}, append(base, "Authorization", canary)...),
		"a colon in a name":  append(pairs{}, append(base, "x:a", canary)...),
		"two paths":          append(pairs{}, append(base, ":path", "/beta/mcp")...),
		"two authorities":    append(pairs{}, append(base, ":authority", "beta")...),
		"a late pseudo":      append(pairs{}, append(base, "x-a", "1", ":path", "/beta/mcp")...),
		"an unknown pseudo":  append(pairs{":upstream", "beta"}, base...),
		"transfer-encoding":  append(pairs{}, append(base, "transfer-encoding", "chunked")...),
		"a content-length":   append(pairs{}, append(base, "content-length", "5")...),
		"no path":            {":method", "POST", ":scheme", "http", ":authority", "x"},
		"an empty path":      {":method", "POST", ":scheme", "http", ":authority", "x", ":path", ""},
		"a path without a /": {":method", "POST", ":scheme", "http", ":authority", "x", ":path", "alpha/mcp"},
		"a blank in a path":  {":method", "POST", ":scheme", "http", ":authority", "x", ":path", "/alpha/mcp HTTP/1.1\r\nauthorization: " + canary},
		"CONNECT":            {":method", "CONNECT", ":authority", "beta:80"},
		"extended CONNECT":   {":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "x", ":path", "/alpha/mcp"},
		"a bad method":       {":method", "GET /beta/mcp HTTP/1.1\r\n", ":scheme", "http", ":authority", "x", ":path", "/alpha/mcp"},
	} {
		// Together, because Envoy takes a second to close a connection it refused.
		wg.Go(func() {
			if got := r.h2(fields); got.status == http.StatusOK {
				t.Errorf("%s: want it refused, got %v", what, got)
			}
		})
	}
	wg.Wait()
	r.untouched()
	for up, want := range map[string]int{"alpha": 200, "nobody": 403} {
		if got := r.get2("/" + up + "/mcp"); got.status != want {
			t.Errorf("a good request to %s: got %v", up, got)
		}
	}
}
