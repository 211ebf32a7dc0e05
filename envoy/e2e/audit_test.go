package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// audit says again, after every case, what always holds. It returns what does not.
func (r *rig) audit() []string {
	var found []string
	for _, u := range r.facts.upstreams {
		found = append(found, auditUpstream(u)...)
		for _, key := range r.lent {
			if key != u.key && bytes.Contains(u.raw(), []byte(key)) {
				found = append(found, "upstream "+u.name+": the key of another upstream reached it")
			}
		}
	}
	found = append(found, r.auditRecord()...)
	secrets := r.secrets()
	for where, text := range r.channels() {
		for _, s := range secrets {
			for _, form := range forms(s) {
				if i := strings.Index(text, form); i >= 0 {
					found = append(found, fmt.Sprintf("L1, L2: a secret can be read in %s: %q", where, around(text, i)))
					break
				}
			}
		}
	}
	return found
}

// records returns the files of the record, in no order; none, when the case keeps none.
func (r *rig) records() []string { return r.recordsOf(r.record()) }

func (r *rig) recordsOf(path string) []string {
	all, err := filepath.Glob(path + "*")
	if err != nil {
		r.t.Error(err)
	}
	return slices.DeleteFunc(all, func(path string) bool { return strings.HasSuffix(path, ".lock") })
}

// auditRecord verifies the program's own record.
func (r *rig) auditRecord() []string {
	files := r.records()
	if len(files) == 0 {
		return nil
	}
	report, err := audit.Verify(audit.VerifyConfig{}, files)
	if err != nil {
		return []string{err.Error()}
	}
	if report.Broken != nil {
		return []string{"the record is broken: " + report.Broken.String()}
	}
	return nil
}

// auditUpstream looks at what reached one upstream.
func auditUpstream(u *upstream) []string {
	var found []string
	bad := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("upstream "+u.name+": "+format, args...))
	}
	raw := string(u.raw())
	if i := strings.Index(raw, canary); i >= 0 {
		bad("a secret of the caller reached it: %q", around(raw, i))
	}
	if i := strings.Index(strings.ToLower(raw), "x-mcp-auth-guard"); i >= 0 {
		bad("our mark reached it: %q", around(raw, i))
	}
	for _, secret := range []string{callerKey, alphaSecret, betaSecret} {
		if strings.Contains(raw, secret) {
			bad("a key or client secret reached it")
		}
	}
	if u.name != "fixed" && u.name != "keyed" && strings.Contains(raw, fixedKey) {
		bad("the key of another upstream reached it")
	}
	for _, token := range bearers(raw) {
		if aud := audience(token); aud != u.url() && token != u.key {
			bad("a token for %q reached it", aud)
		}
	}
	return found
}

func around(s string, i int) string { return s[max(0, i-60):min(len(s), i+60)] }

// bearers returns every bearer token in what came over the wire.
func bearers(raw string) []string {
	var out []string
	for line := range strings.SplitSeq(raw, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || !strings.EqualFold(name, "authorization") {
			continue
		}
		if token, ok := strings.CutPrefix(strings.TrimSpace(value), "Bearer "); ok && !slices.Contains(out, token) {
			out = append(out, token)
		}
	}
	return out
}

// audience reads the aud of a JWT of the authorization server.
func audience(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "no token of ours: " + token
	}
	return claim(token, "aud")
}

// claim reads one text claim of a JWT, without a look at its signature.
func claim(token, name string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return err.Error()
	}
	claims := map[string]any{}
	if err := json.Unmarshal(b, &claims); err != nil {
		return err.Error()
	}
	s, _ := claims[name].(string)
	return s
}

// secrets are all strings that nobody may read.
func (r *rig) secrets() []string {
	all := slices.Concat([]string{canary, callerKey, alphaSecret, betaSecret, fixedKey}, r.lent, r.unread)
	for _, u := range r.facts.upstreams {
		for _, token := range bearers(string(u.raw())) {
			if parts := strings.Split(token, "."); len(parts) == 3 {
				all = append(all, parts[2]) // the signature makes it a credential
			}
		}
	}
	return all
}

// forms are the ways in which a secret may hide.
func forms(s string) []string {
	b := []byte(s)
	quoted, _ := json.Marshal(s) // with < > & spelled out
	all := []string{
		s, url.QueryEscape(s), url.PathEscape(s), lowerEscapes(url.QueryEscape(s)), strings.Trim(string(quoted), `"`),
		strings.Trim(strconv.Quote(s), `"`), hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)), strings.Trim(fmt.Sprintf("%d", b), "[]"),
	}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for _, inner := range []string{s, url.QueryEscape(s)} { // RFC 6749 §2.3.1: escaped, then encoded
			all = append(all, aligned(enc, inner)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// lowerEscapes writes %2B as %2b, and nothing else in lower case.
func lowerEscapes(s string) string {
	parts := strings.Split(s, "%")
	for i, p := range parts[1:] {
		parts[i+1] = strings.ToLower(p[:2]) + p[2:]
	}
	return strings.Join(parts, "%")
}

// aligned returns what a text looks like within something longer that is base64:
// it begins at one of three places of a group, and what shares a character with
// its neighbours is left out.
func aligned(enc *base64.Encoding, s string) []string {
	all := make([]string, 3)
	for off := range all {
		bits := (off + len(s)) * 8
		all[off] = enc.EncodeToString(append(make([]byte, off), s...))[(off*8+5)/6 : bits/6]
	}
	return all
}

// channels are all the places where somebody else can read.
func (r *rig) channels() map[string]string {
	out := map[string]string{}
	for _, p := range r.spawned {
		b, err := os.ReadFile(p.log)
		if err != nil {
			r.t.Error(err)
		}
		out["the program's log"] += string(b)
		if cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid)); err == nil {
			out["the program's command line"] += string(cmdline)
		}
		if p.gone() {
			continue
		}
		for _, path := range []string{"/metrics", "/status", "/readyz", "/healthz", "/", "/debug/pprof/goroutine?debug=2"} {
			_, text := p.get(path)
			out["the program's "+path] += text
		}
	}
	if r.envoy != nil {
		b, _ := os.ReadFile(r.envoy.Log)
		out["Envoy's log"] = string(b)
		for _, path := range []string{
			"/config_dump?include_eds", "/stats", "/stats/prometheus", "/clusters", "/listeners", "/certs", "/server_info", "/runtime",
		} {
			b, _ := r.envoy.Get(context.Background(), path) // stopped by now, in some cases
			out["Envoy's "+path] = string(b)
		}
	}
	for _, path := range r.told {
		b, _ := os.ReadFile(path)
		out[path] = string(b)
	}
	for name, text := range r.media {
		out[name] = text()
	}
	for _, path := range r.records() {
		b, _ := os.ReadFile(path)
		out["the record"] += string(b)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out["an answer to a caller"] = r.answers.String()
	return out
}
