package tokenstest

import (
	"compress/gzip"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Fault is a way in which the token endpoint misbehaves.
type Fault string

// Faults that need a name in code. Faults lists all.
const (
	Status500       Fault = "status_500"
	Status503       Fault = "status_503"
	InvalidClient   Fault = "invalid_client"
	Hang            Fault = "hang"
	Reset           Fault = "reset"
	HTML            Fault = "html"
	Redirect307     Fault = "redirect_307"
	NoExpiresIn     Fault = "no_expires_in"
	SameToken       Fault = "same_token"
	EchoForm        Fault = "echo_form"
	Delay           Fault = "delay_300ms"
	SlowBody        Fault = "slow_body"
	RetryAfter30    Fault = "retry_after_30"
	EndlessBody     Fault = "endless_body"
	EndlessInterims Fault = "endless_1xx"
)

// wrong is what a fault does: true when it has answered.
type wrong func(s *Server, w http.ResponseWriter, r *http.Request, raw string, form url.Values) bool

// Faults returns the names of all faults, sorted.
func Faults() []Fault {
	names := make([]Fault, 0, 64)
	for f := range table() {
		names = append(names, f)
	}
	slices.Sort(names)
	return names
}

func (s *Server) misbehave(f Fault, w http.ResponseWriter, r *http.Request, raw string, form url.Values) bool {
	do, ok := table()[f]
	if !ok {
		http.Error(w, "no such fault", http.StatusNotImplemented)
		return true
	}
	return do(s, w, r, raw, form)
}

// table is every fault by name.
func table() map[Fault]wrong {
	t := map[Fault]wrong{}
	for _, part := range []map[Fault]wrong{statuses(), answers(), lifetimes(), wires()} {
		maps.Copy(t, part)
	}
	return t
}

// says answers with a fixed status and body; extra are header pairs.
func says(status int, kind, body string, extra ...string) wrong {
	return func(_ *Server, w http.ResponseWriter, _ *http.Request, _ string, _ url.Values) bool {
		w.Header().Set("Content-Type", kind)
		for i := 0; i+1 < len(extra); i += 2 {
			w.Header().Set(extra[i], extra[i+1])
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) //nolint:gosec // saying back what came is the fault
		return true
	}
}

const (
	jsonType = "application/json"
	page     = "<!doctype html><html><body>login</body></html>"
)

func oauth(status int, code string) wrong {
	return says(status, jsonType, `{"error":"`+code+`","error_description":"no"}`)
}

// statuses are wrong by their status line or headers.
func statuses() map[Fault]wrong {
	t := map[Fault]wrong{
		EchoForm: func(_ *Server, w http.ResponseWriter, r *http.Request, raw string, form url.Values) bool {
			return says(500, "text/plain", raw+" "+basicPair(r)+" "+form.Get("client_secret")+form.Get("client_assertion")+form.Get("assertion"))(nil, w, r, "", nil)
		},
		"echo_description": func(_ *Server, w http.ResponseWriter, r *http.Request, raw string, form url.Values) bool {
			(&oauthError{400, "invalid_request", "bad form " + form.Get("client_assertion") + form.Get("assertion") + raw + basicPair(r) + r.Header.Get("Authorization"), false}).write(w)
			return true
		},
		"unauthorized_bare": says(401, "text/plain", "no"),
		"forbidden_html":    says(403, "text/html", page),
		"status_400_html":   says(400, "text/html", page),
		"status_429":        says(429, "text/plain", "slow"),
		RetryAfter30:        says(429, "text/plain", "slow", "Retry-After", "30"),
		"retry_after_huge":  says(503, "text/plain", "slow", "Retry-After", "99999999999999999999"),
		"retry_after_minus": says(503, "text/plain", "slow", "Retry-After", "-5"),
		"retry_after_junk":  says(503, "text/plain", "slow", "Retry-After", "soon"),
		"retry_after_date": says(503, "text/plain", "slow",
			"Date", "Mon, 02 Nov 2026 10:00:00 GMT", "Retry-After", "Mon, 02 Nov 2026 10:00:20 GMT"),
		"retry_after_past": says(503, "text/plain", "slow",
			"Date", "Mon, 02 Nov 2026 10:00:00 GMT", "Retry-After", "Mon, 02 Nov 2026 09:00:00 GMT"),
		"error_in_200":         oauth(200, "invalid_client"),
		"error_in_200_no_code": says(200, jsonType, `{"error":{"message":"no"},"access_token":"x","token_type":"Bearer"}`),
		"unknown_error":        says(400, jsonType, `{"error":"EVIL\r\nx: 1","error_description":"line\r\nbreak \u0007 \"q\" \\ é"}`),
		"long_description":     says(400, jsonType, `{"error":"invalid_request","error_description":"`+strings.Repeat("a", 5000)+`"}`),
		"no_content":           says(204, jsonType, ""),
	}
	for _, status := range []int{500, 502, 503, 504} {
		t[Fault(fmt.Sprintf("status_%d", status))] = says(status, "text/html", page)
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		t[Fault(fmt.Sprintf("redirect_%d", status))] = func(s *Server, w http.ResponseWriter, _ *http.Request, _ string, _ url.Values) bool {
			w.Header().Set("Location", s.otherBase+"/token")
			w.WriteHeader(status)
			return true
		}
		t[Fault(fmt.Sprintf("redirect_%d_same_host", status))] = func(s *Server, w http.ResponseWriter, _ *http.Request, _ string, _ url.Values) bool {
			w.Header().Set("Location", s.TokenURL())
			w.WriteHeader(status)
			return true
		}
	}
	for _, code := range []string{
		"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "invalid_request", "invalid_grant", "temporarily_unavailable", "server_error",
	} {
		status := http.StatusBadRequest
		if code == "invalid_client" {
			status = http.StatusUnauthorized
		}
		t[Fault(code)] = oauth(status, code)
	}
	return t
}

// answers are wrong by the body of a 200.
func answers() map[Fault]wrong {
	ok := func(body string) wrong { return says(200, jsonType, body) }
	return map[Fault]wrong{
		HTML:                    says(200, "text/html", page),
		"html_as_json":          ok(page),
		"empty":                 ok(""),
		"array":                 ok(`[{"access_token":"x","token_type":"Bearer"}]`),
		"null":                  ok(`null`),
		"form":                  says(200, "application/x-www-form-urlencoded", "access_token=x&token_type=bearer&expires_in=zz"),
		"trailing_data":         ok(`{"access_token":"x","token_type":"Bearer"} {}`),
		"truncated_json":        ok(`{"access_token":"x","token_ty`),
		"text_plain":            says(200, "text/plain", `{"access_token":"plain","token_type":"bearer","expires_in":60}`),
		"no_media_type":         says(200, "", `{"access_token":"plain","token_type":"bearer","expires_in":60}`),
		"bom":                   ok("\xef\xbb\xbf" + `{"access_token":"bom","token_type":"bearer","expires_in":60}`),
		"no_token":              ok(`{"token_type":"Bearer","expires_in":60}`),
		"empty_token":           ok(`{"access_token":"","token_type":"Bearer"}`),
		"number_token":          ok(`{"access_token":7,"token_type":"Bearer"}`),
		"crlf_token":            ok(`{"access_token":"A\r\nx-evil: 1","token_type":"Bearer"}`),
		"nul_token":             ok(`{"access_token":"A \u0000B","token_type":"Bearer"}`),
		"space_token":           ok(`{"access_token":"A B","token_type":"Bearer"}`),
		"non_ascii_token":       ok(`{"access_token":"Aé","token_type":"Bearer"}`),
		"padding_token":         ok(`{"access_token":"A=B","token_type":"Bearer"}`),
		"big_token":             ok(`{"access_token":"` + strings.Repeat("a", 16<<10+1) + `","token_type":"Bearer"}`),
		"biggest_token":         ok(`{"access_token":"` + strings.Repeat("a", 16<<10) + `","token_type":"Bearer"}`),
		"mac_type":              ok(`{"access_token":"x","token_type":"mac"}`),
		"dpop_type":             ok(`{"access_token":"x","token_type":"DPoP"}`),
		"n_a_type":              ok(`{"access_token":"x","token_type":"N_A"}`),
		"no_type":               ok(`{"access_token":"x"}`),
		"number_type":           ok(`{"access_token":"x","token_type":1}`),
		"bearer_upper":          ok(`{"access_token":"upper","token_type":"BEARER","expires_in":60}`),
		"case_variant":          ok(`{"access_token":"right","ACCESS_TOKEN":"wrong","Token_Type":"mac","token_type":"bearer","expires_in":60}`),
		"case_variant_only":     ok(`{"ACCESS_TOKEN":"wrong","token_type":"bearer"}`),
		"duplicate_token":       ok(`{"access_token":"a","access_token":"b","token_type":"bearer"}`),
		"duplicate_escaped":     ok(`{"access_token":"a","access\u005ftoken":"b","token_type":"bearer"}`),
		"duplicate_unknown":     ok(`{"access_token":"a","token_type":"bearer","x":1,"x":2}`),
		"unknown_members":       ok(`{"access_token":"extra","token_type":"bearer","expires_in":60,"refresh_token":"r","x":{"y":[1,{"x":1,"x":2}]}}`),
		"error_null":            ok(`{"access_token":"fine","token_type":"bearer","expires_in":60,"error":null}`),
		"over_limit":            ok(`{"access_token":"x","token_type":"Bearer","pad":"` + strings.Repeat("a", 256<<10) + `"}`),
		SameToken:               ok(`{"access_token":"always-the-same","token_type":"Bearer","expires_in":3600}`),
		"gzip_small":            says(200, jsonType, "\x1f\x8b", "Content-Encoding", "gzip"),
		"set_cookie":            says(200, jsonType, `{"access_token":"c","token_type":"bearer","expires_in":60}`, "Set-Cookie", "a=b"),
		"created":               says(201, jsonType, `{"access_token":"made","token_type":"bearer","expires_in":60}`),
		"deep_json":             ok(`{"access_token":"x","token_type":"bearer","d":` + strings.Repeat("[", 50000) + strings.Repeat("]", 50000) + `}`),
		"scope_with_line_break": ok(`{"access_token":"s","token_type":"bearer","expires_in":60,"scope":"a\r\nb"}`),
	}
}

// lifetimes are strange values of expires_in.
func lifetimes() map[Fault]wrong {
	t := map[Fault]wrong{
		"refresh_in":      says(200, jsonType, `{"access_token":"early","token_type":"Bearer","expires_in":3600,"refresh_in":"1800"}`),
		"refresh_in_junk": says(200, jsonType, `{"access_token":"early","token_type":"Bearer","expires_in":3600,"refresh_in":{}}`),
		NoExpiresIn:       says(200, jsonType, `{"access_token":"endless","token_type":"Bearer"}`),
	}
	for name, value := range map[string]string{
		"zero": "0", "null": "null", "empty": `""`, "minus_one": "-1", "minus_wrap": "-4294963696",
		"exponent": "1e3", "decimal": "3599.5", "integral_decimal": "3600.0", "string": `"3600"`, "decimal_string": `"3600.0"`,
		"1e18": "1000000000000000000", "epoch": "1793613600", "overflow": "9223372036854775807", "over_int64": "99999999999999999999",
		"1e400": "1e400", "infinity": `"Infinity"`, "nan": `"NaN"`, "junk": `"zz"`, "hex": `"0x10"`, "plus": `"+5"`, "spaces": `" 60 "`,
		"bool": "true", "object": "{}", "array": "[60]",
	} {
		t[Fault("expires_in_"+name)] = says(200, jsonType, `{"access_token":"odd","token_type":"Bearer","expires_in":`+value+`}`)
	}
	return t
}

// wires are wrong below HTTP, or in time.
func wires() map[Fault]wrong {
	return map[Fault]wrong{
		Hang: func(s *Server, _ http.ResponseWriter, r *http.Request, _ string, _ url.Values) bool {
			s.pause(r, time.Hour)
			return true
		},
		Delay: func(s *Server, _ http.ResponseWriter, r *http.Request, _ string, _ url.Values) bool {
			s.pause(r, 300*time.Millisecond)
			return false
		},
		Reset:              hijack(func(*Server, net.Conn) {}),
		"reset_mid_body":   hijack(say("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n{\"access_token\":")),
		"cut_mid_chunk":    hijack(say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{\"access")),
		"not_http":         hijack(say("SSH-2.0-OpenSSH_9.9\r\n")),
		"slow_header":      hijack(drip("HTTP/1.1 200 OK\r\nx-pad: ", "a")),
		SlowBody:           hijack(drip("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{\"access_token\":\"", "a")),
		EndlessInterims:    hijack(flood("", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")),
		"huge_header":      hijack(flood("HTTP/1.1 200 OK\r\nx-pad: ", strings.Repeat("a", 1024))),
		EndlessBody:        hijack(flood("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"access_token\":\"", strings.Repeat("a", 1024))),
		"endless_body_503": hijack(flood("HTTP/1.1 503 Busy\r\nContent-Type: text/html\r\n\r\n", strings.Repeat("a", 1024))),
		"gzip_bomb":        bomb,
	}
}

// pause waits, for as long as the client and the server are there.
func (s *Server) pause(r *http.Request, d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	case <-s.done:
	}
}

// hijack takes the connection away from HTTP, writes, and resets it.
func hijack(do func(*Server, net.Conn)) wrong {
	return func(s *Server, w http.ResponseWriter, _ *http.Request, _ string, _ url.Values) bool {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return true
		}
		defer func() { _ = conn.Close() }()
		do(s, conn)
		return true
	}
}

func say(text string) func(*Server, net.Conn) {
	return func(_ *Server, c net.Conn) { _, _ = c.Write([]byte(text)) }
}

// drip writes a head, then bit by bit, ten a second, until one side leaves.
func drip(head, bit string) func(*Server, net.Conn) {
	return func(s *Server, c net.Conn) {
		_, err := c.Write([]byte(head))
		for err == nil {
			select {
			case <-time.After(100 * time.Millisecond):
				_, err = c.Write([]byte(bit))
			case <-s.done:
				return
			}
		}
	}
}

// flood writes a head, then bit by bit as fast as it goes.
func flood(head, bit string) func(*Server, net.Conn) {
	return func(s *Server, c net.Conn) {
		_, err := c.Write([]byte(head))
		for err == nil {
			select {
			case <-s.done:
				return
			default:
				_, err = c.Write([]byte(bit))
			}
		}
	}
}

// bomb sends 100 MB of blanks, packed small.
func bomb(_ *Server, w http.ResponseWriter, _ *http.Request, _ string, _ url.Values) bool {
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("Content-Encoding", "gzip")
	_ = http.NewResponseController(w).Flush()
	z := gzip.NewWriter(w)
	blanks := []byte(strings.Repeat(" ", 1<<20))
	for range 100 {
		if _, err := z.Write(blanks); err != nil {
			return true
		}
	}
	_ = z.Close()
	return true
}
