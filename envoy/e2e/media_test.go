package e2e_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// The texts of these calls that only the upstream may read, and those that show that
// a medium was written to: names of the policy, and of tools.
const (
	argument   = "argument-of-a-call-nobody-may-read"
	keptCookie = "cookie-that-passes-nobody-may-read"
	chainKey   = "key-of-the-chain-that-nobody-may-read-SVC"
	otlpToken  = "token-of-the-collector-nobody-may-read-SVC"

	marked = "harmless-marker"
	tool   = "harmless_tool"
	denied = "harmless_denied"
)

// everyMedium is a policy that writes to all that can be written to.
const everyMedium = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: {{.Admin}}, drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
audit:
  file: {{.Dir}}/chained.jsonl
  key: {file: {{.Dir}}/chain.key}
  stdout: true
  syslog: {address: "udp://SYSLOG"}
  otlp: {endpoint: COLLECTOR/v1/logs, headers: {x-token: {file: {{.Dir}}/otlp.secret}}}
tracing: {otlp: {endpoint: COLLECTOR/v1/traces, headers: {x-token: {file: {{.Dir}}/otlp.secret}}}, sample: 100%}
watch:
  auth_failures: {share: 10%, min_calls: 5, window: 30s, do: [alert]}
  errors: {share: 25%, min_calls: 5, window: 30s, do: [alert]}
  token_endpoint: {failures: 2, for: 30s, do: [alert]}
  sweep: {tools: 5, window: 30s, do: [alert]}
  alerts:
    webhook: {url: "{{.URL "hook"}}", secret: {file: {{.Dir}}/hook.secret}}
    slack: {url: {file: {{.Dir}}/chat.secret}}
    alertmanager: {urls: ["http://{{.Addr "manager"}}"], authorization: {file: {{.Dir}}/otlp.secret}}
callers:
  people: {jwt: {issuer: "{{.Issuer}}", audience: "https://mcp.company.com", algorithms: [RS256, ES256]}}
  robot: {key: {sha256: {{.KeySum}}}}
defaults: {callers: [people, robot]}
upstreams:
  harmless-marker:
    url: {{.URL "harmless-marker"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, assertion_audience: "{{.Issuer}}", client_id: signing-client, private_key: {file: {{.Dir}}/client.key}, scopes: [mcp.read]}}
    cookies: {allow: [session_id]}
    tools: {default: deny, rules: [{names: [harmless_tool]}]}
  secret:
    url: {{.URL "secret"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
  fixed:
    url: {{.URL "fixed"}}
    credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}
`

// TestL1_L2_CanaryInEveryMedium has calls of every outcome written to all that can be
// written to, and reads it there: a harmless word is found in each, and no secret in any. The
// scan is the audit that ends each case.
func TestL1_L2_CanaryInEveryMedium(t *testing.T) {
	t.Parallel() // it waits more than it works
	r, told := newMediaRig(t)
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	r.openMedia(told)

	for _, up := range []string{marked, "secret", "fixed"} {
		r.up(up).answerFunc(length)
		r.callsOfEachKind(t, up)
	}
	r.issuer.Revoke()
	r.asks("/"+marked+"/mcp", callOf(tool), "x-mcp-auth-key", callerKey)
	for _, up := range []string{marked, "fixed"} { // the credential lent is refused for good
		r.up(up).answerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Mcp-Auth-Reason", canary)
			w.Header().Set("Www-Authenticate", `Bearer error_description="`+canary+`"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
		for range 8 {
			r.asks("/"+up+"/mcp", callOf(tool), "x-mcp-auth-key", callerKey)
		}
	}
	for _, f := range []tokenstest.Fault{tokenstest.EchoForm, "echo_description", tokenstest.InvalidClient, tokenstest.HTML} {
		r.issuer.Fail(f)
		r.issuer.Revoke()
		for _, up := range []string{marked, "secret"} {
			r.asks("/"+up+"/mcp", callOf(tool), "x-mcp-auth-key", callerKey)
		}
		time.Sleep(1100 * time.Millisecond) // what backs off
		r.issuer.Heal()
	}
	r.everyMediumTells(t)
	r.chainHolds(t)
}

func callOf(tool string) string {
	return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + tool + `","arguments":{"q":"` + argument + `"}}}`
}

// asks posts JSON.
func (r *rig) asks(path, body string, headers ...string) {
	r.t.Helper()
	r.post(path, body, append(headers, "content-type", "application/json")...)
}

// callsOfEachKind are good and bad callers, tools and cookies at one upstream.
func (r *rig) callsOfEachKind(t *testing.T, up string) {
	t.Helper()
	token := func(extra map[string]any) string {
		token, err := r.issuer.Mint("harmless-subject", audienceOfPeople, extra)
		if err != nil {
			t.Fatal(err)
		}
		r.lent = append(r.lent, secretParts(token)...)
		return token
	}
	good := token(map[string]any{"scope": "mcp.read"})
	expired := token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix()})
	forged := good[:strings.LastIndex(good, ".")] + "." + strings.Repeat("Zm9yZ2Vk", 8)
	r.lent = append(r.lent, secretParts(forged)...)
	path, cookies := "/"+up+"/mcp", pairs{"cookie", "session_id=" + keptCookie + "; other=" + canary}
	for _, who := range []pairs{
		{"authorization", "Bearer " + good},
		{"authorization", "Bearer " + expired},
		{"authorization", "Bearer " + forged},
		{"authorization", "Basic " + canary},
		{"x-mcp-auth-key", callerKey},
		{"x-mcp-auth-key", canary},
		{},
		{"authorization", "Bearer " + good, "x-mcp-auth-key", callerKey},
		{"authorization", "Bearer " + callerToken, "authorization", "Bearer " + good},
	} {
		for _, name := range []string{tool, denied} {
			r.asks(path, callOf(name), slices.Concat(who, cookies, pairs{"x-request-id", canary, "baggage", "k=" + argument, "tracestate", "k=" + argument, "traceparent", recorded})...)
		}
	}
	for _, body := range []string{callOf(tool)[:60], `{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{"uri":"https://` + argument + `@files.test/x?q=` + argument + `"}}`, "[" + callOf(denied) + "]"} {
		r.asks(path, body, "x-mcp-auth-key", callerKey)
	}
	r.asks(path, callOf(tool), "x-mcp-auth-key", callerKey, "origin", "https://"+canary+".test")
	for _, n := range "abcdefgh" { // a sweep
		r.asks(path, callOf(denied+"_"+string(n)), "x-mcp-auth-key", callerKey)
	}
}

// outlets take what the program sends.
type outlets struct {
	collector *httptest.Server
	syslog    net.PacketConn
	boxes     map[string]*mailbox

	mu   sync.Mutex
	text map[string]*strings.Builder
}

func (o *outlets) add(name string, b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text[name] == nil {
		o.text[name] = new(strings.Builder)
	}
	_, _ = o.text[name].Write(b)
}

func (o *outlets) got(name string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text[name] == nil {
		return ""
	}
	return o.text[name].String()
}

// ServeHTTP is a collector that keeps the bodies as they are: in protobuf, strings
// stand as they do in text.
func (o *outlets) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	body := io.Reader(req.Body)
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(req.Body)
		if err != nil {
			return
		}
		body = z
	}
	b, _ := io.ReadAll(body)
	o.add("OTLP "+req.URL.Path, b)
}

// newMediaRig writes the policy, its secrets, and opens what the program sends to.
func newMediaRig(t *testing.T) (*rig, *outlets) {
	t.Helper()
	told := &outlets{text: map[string]*strings.Builder{}}
	told.collector = httptest.NewServer(told)
	t.Cleanup(told.collector.Close)
	var err error
	if told.syslog, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = told.syslog.Close() })
	go func() {
		for b := make([]byte, 64<<10); ; {
			n, _, err := told.syslog.ReadFrom(b)
			if err != nil {
				return
			}
			told.add("syslog", b[:n])
		}
	}()

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		"alpha-client": {Secret: alphaSecret}, "signing-client": {Keys: []jose.JSONWebKey{{Key: key.Public()}}},
	}})
	text := strings.NewReplacer("COLLECTOR", told.collector.URL, "SYSLOG", told.syslog.LocalAddr().String(), "{{.Issuer}}", issuer.Issuer()).Replace(everyMedium)
	r := newRig(t, text, func(r *rig) {
		r.issuer = issuer
		r.facts.TokenURL = issuer.TokenURL()
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	signing := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	for name, secret := range map[string]string{
		"client.key": signing, "chain.key": chainKey, "otlp.secret": otlpToken, "hook.secret": alertKey, "chat.secret": r.facts.URL("chat") + "/SECRET-PATH",
	} {
		r.write(name, secret+"\n")
	}
	r.lent = append(r.lent, alertKey, chainKey)
	// Where a token goes to may read it: the manager gets that of the collector, and
	// chat its own path. The beginnings are those of a JWT.
	r.unread = append(r.unread, argument, keptCookie, otlpToken, "SECRET-PATH", "eyJhbGciOi", "eyJ0eXAiOi", "eyJraWQiOi")
	for line := range strings.Lines(signing) {
		if !strings.HasPrefix(line, "-----") {
			r.lent = append(r.lent, strings.TrimSpace(line))
		}
	}
	return r, told
}

// openMedia names all places that the program writes to or shows.
func (r *rig) openMedia(told *outlets) {
	told.boxes = map[string]*mailbox{}
	r.media = map[string]func() string{
		"the audit file": func() string { b, _ := os.ReadFile(filepath.Join(r.dir, "chained.jsonl")); return string(b) },
		"syslog":         func() string { return told.got("syslog") },
		"OTLP logs":      func() string { return told.got("OTLP /v1/logs") },
		"OTLP traces":    func() string { return told.got("OTLP /v1/traces") },
	}
	for _, name := range []string{"hook", "chat", "manager"} {
		box := r.receive(name)
		r.media["alerts to "+name] = func() string {
			var all bytes.Buffer
			for _, l := range box.letters() {
				all.WriteString(l.path + l.body)
			}
			return strings.ReplaceAll(all.String(), "/mcp/SECRET-PATH", "") // its own address
		}
	}
	for _, name := range []string{marked, "secret", "fixed"} {
		r.media["the page of "+name] = func() string { _, text := r.proc.get("/upstreams/" + name); return text }
	}
	r.media["the page, searched"] = func() string { _, text := r.proc.get("/?q=marker&sort=name"); return text }
}

// everyMediumTells waits until a harmless word is found in each medium.
func (r *rig) everyMediumTells(t *testing.T) {
	t.Helper()
	want := map[string][]string{
		"the program's log": {marked, denied, `"kind":"decision"`}, "the program's /metrics": {marked, tool}, "the program's /status": {marked, denied},
		"the program's /": {marked, denied, "chained.jsonl"}, "the page, searched": {marked}, "the page of " + marked: {marked, denied}, "the page of secret": {"secret"}, "the page of fixed": {"fixed"},
		"the audit file": {marked, tool, denied, "harmless-subject", "upstream_rejected"}, "syslog": {marked, tool, denied, "harmless-subject"},
		"OTLP logs": {marked, tool, denied, "harmless-subject"}, "OTLP traces": {marked, tool, denied, "mcp_auth.decide"},
		"alerts to hook": {marked, "firing"}, "alerts to chat": {marked}, "alerts to manager": {marked},
	}
	for name := range r.media {
		if want[name] == nil {
			t.Errorf("%s: nothing is known of it that must be there", name)
		}
	}
	var missing []string
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		missing = nil
		texts := r.channels()
		for _, name := range slices.Sorted(maps.Keys(want)) {
			for _, word := range want[name] {
				if !strings.Contains(texts[name], word) {
					missing = append(missing, name+": "+word)
				}
			}
		}
		if len(missing) == 0 {
			for _, name := range slices.Sorted(maps.Keys(want)) {
				t.Logf("%-24s %7d bytes", name, len(texts[name]))
			}
			return
		}
	}
	t.Errorf("a scan of these says nothing, since words that must be there are not: %q", missing)
}

// chainHolds verifies the record, which has a key here.
func (r *rig) chainHolds(t *testing.T) {
	t.Helper()
	files := r.recordsOf(filepath.Join(r.dir, "chained.jsonl"))
	report, err := audit.Verify(audit.VerifyConfig{Keys: [][]byte{[]byte(chainKey)}}, files)
	if err != nil || report.Broken != nil {
		t.Errorf("the record of %d files: %v, %v", len(files), err, report)
	}
}
