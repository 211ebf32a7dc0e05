package e2e_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestL1_L2_Canary does a bit of everything with the log at trace level, and has
// every place where somebody could read scanned for every secret and token, in
// every form. The scan itself is the audit that ends each case.
func TestL1_L2_Canary(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := newRig(t, canaryPolicy())
	r.dumped = true
	access := filepath.Join(r.dir, "access.log")
	r.told = append(r.told, access)
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(edited(r.render(), func(c config) { logToFile(c, access) }))

	r.mixedCalls(t)
	r.badFiles(t)
	r.wrongPeers(t)
	r.commands(t)
	r.faultyIssuer(t)

	r.eventually("our decisions are in Envoy's access log", 3*time.Second, func() bool {
		got, _ := os.ReadFile(access)
		return strings.Contains(string(got), "upstream_rejected") && strings.Contains(string(got), `"token"`)
	})
	if n := len(r.secrets()); n < 10 {
		t.Errorf("want the secrets and some tokens to look for, got %d", n)
	}
	for _, path := range []string{"/metrics", "/status"} {
		r.told = append(r.told, r.keep(path)) // the program is gone when the audit comes
	}
	// What a crash prints.
	r.proc.signal(syscall.SIGQUIT)
	<-r.proc.done
	if log := tail(r.proc.log, 1<<20); !strings.Contains(log, "goroutine ") {
		t.Errorf("want a dump of goroutines, got %.300q", log)
	}
}

// TestL1_TheScanFinds: the scan itself, in each form.
func TestL1_TheScanFinds(t *testing.T) {
	const secret = "s3cret+<&\"/\n%"
	for what, text := range map[string]string{
		"raw": "x" + secret, "query": "a=s3cret%2B%3C%26%22%2F%0A%25&b", "lower": "a=s3cret%2b%3c%26%22%2f%0a%25&b", "quoted": `"s3cret+<&\"/\n%"`, "json": `{"a":"s3cret+\u003c\u0026\"/\n%"}`,
		"hex": "0x7333637265742b3c26222f0a25", "HEX": "7333637265742B3C26222F0A25", "bytes": "[115 51 99 114 101 116 43 60 38 34 47 10 37]",
		"base64":   base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64+1": base64.StdEncoding.EncodeToString([]byte("a" + secret + "b")),
		"base64+2": base64.URLEncoding.EncodeToString([]byte("ab" + secret + "cd")),
		"basic":    base64.StdEncoding.EncodeToString([]byte("id:s3cret%2B%3C%26%22%2F%0A%25")),
	} {
		if !slices.ContainsFunc(forms(secret), func(form string) bool { return strings.Contains(text, form) }) {
			t.Errorf("%s: not found in %q", what, text)
		}
	}
	for _, form := range forms(secret) {
		if len(form) < 12 {
			t.Errorf("%q is too short to look for", form)
		}
	}
}

// canaryPolicy has an upstream for each way in which a token is not to be had.
func canaryPolicy() string {
	text := standard
	for _, name := range canaryFaults() {
		text += "  " + upstreamOf(name) + `: {url: {{.URL "` + upstreamOf(name) + `"}}, credential: {oauth2: {token_url: {{.TokenURL}}, client_id: beta-client, client_secret: {file: {{.Dir}}/beta.secret}}}}` + "\n"
	}
	return text
}

func upstreamOf(f tokenstest.Fault) string { return "f-" + strings.ReplaceAll(string(f), "_", "-") }

func canaryFaults() []tokenstest.Fault {
	return []tokenstest.Fault{
		tokenstest.EchoForm, "echo_description", tokenstest.InvalidClient, tokenstest.Hang, tokenstest.HTML, tokenstest.Redirect307,
		"unknown_error", "error_in_200_no_code", tokenstest.Reset,
	}
}

// logToFile adds an access log with all that is ours in it.
func logToFile(c config, path string) {
	c.manager()["access_log"] = append(c.manager()["access_log"].([]any), map[string]any{
		"name": "file",
		"typed_config": map[string]any{
			"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": path,
			"log_format": map[string]any{"text_format_source": map[string]any{
				"inline_string": "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% %REQ(:PATH)% %RESP(X-MCP-AUTH-REASON)% %DYNAMIC_METADATA(mcp_auth)% %UPSTREAM_TRANSPORT_FAILURE_REASON% %GRPC_STATUS%\n",
			}},
		},
	})
}

// mixedCalls are calls of every outcome that needs no fault elsewhere.
func (r *rig) mixedCalls(t *testing.T) {
	t.Helper()
	r.up("alpha").answer(r.guarded(length))
	for _, path := range []string{"/alpha/mcp", "/beta/mcp", "/fixed/mcp", "/keyed/mcp", "/open/mcp", "/nobody/mcp", "/alpha/..;/x"} {
		r.both(func(_ string, get func(string, ...string) reply) { get(path, attack()...) })
		r.post(path, "{}", own("canary")...)
		r.post(path, "{}", "X-Mcp-Auth-Key", callerKey)
		r.get1(path, append(attack(), "authorization: Bearer other-"+canary, "x-envoy-attempt-count: 2")...)
		r.get1(path, append(attack(), "origin: https://"+canary+".test", "x-request-id: "+canary)...)
		r.get1(path, "cookie: other="+strings.Repeat("x", 9000)+canary, "x-mcp-auth-guard: alpha"+canary)
	}
	r.issuer.Revoke()
	r.post("/alpha/mcp", "{}", own("healed")...)
	r.issuer.Revoke()
	r.post("/alpha/mcp", strings.Repeat("x", 2<<20), own("large")...)
	r.up("beta").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	for range 5 {
		r.post("/beta/mcp", "{}", own("loop")...)
	}
}

func attack() []string {
	return []string{"authorization: Bearer " + callerToken, "x-mcp-auth-key: " + canary, "proxy-authorization: Basic " + canary, "cookie: a=" + canary + "; session_id=s-1"}
}

// badFiles are a policy with a secret in it, and secrets that cannot be used.
func (r *rig) badFiles(t *testing.T) {
	t.Helper()
	good := r.recorded(canaryPolicy())
	for _, text := range []string{
		strings.Replace(good, `"${ALPHA_SECRET}"`, `"`+canary+`-literal"`, 1),
		good + "  x: {url: http://user:" + canary + "@127.0.0.1:1/}\n",
		good + canary + ": [" + canary, strings.Replace(good, "version: 1", "version: "+canary, 1),
	} {
		r.write("policy.yaml", text)
		r.proc.signal(syscall.SIGHUP)
		r.eventually("the fault shows", 10*time.Second, func() bool { return r.proc.metric("mcp_auth_config_last_reload_successful") == 0 })
		r.told = append(r.told, r.keep("/status"))
		r.write("policy.yaml", good)
		r.proc.signal(syscall.SIGHUP)
		r.eventually("it is healed", 10*time.Second, func() bool { return r.proc.metric("mcp_auth_config_last_reload_successful") == 1 })
	}
	r.write("fixed.secret", fixedKey+"\x01\n")
	r.eventually("the key is refused", 5*time.Second, func() bool { return r.post("/fixed/mcp", "{}").status == http.StatusBadGateway })
	r.write("fixed.secret", fixedKey+"\n")
}

// keep saves what a page of the program says now.
func (r *rig) keep(page string) string {
	path := filepath.Join(r.dir, "kept"+strings.ReplaceAll(page, "/", "-")+time.Now().Format("150405.000000"))
	_, text := r.proc.get(page)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		r.t.Error(err)
	}
	return path
}

// wrongPeers talk to the program's own port, and what they are told is kept: gRPC
// status texts are answers too.
func (r *rig) wrongPeers(t *testing.T) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+r.facts.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	headers := &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: "authorization", RawValue: []byte("Bearer " + callerToken)},
		{Key: "x-mcp-auth-key", RawValue: []byte(callerKey)},
		{Key: "x-envoy-attempt-count", RawValue: []byte("2")},
	}}
	for _, name := range []string{"", "alpha", "keyed", canary} {
		for _, msg := range []*extprocv3.ProcessingRequest{
			nil,
			{},
			{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headers}}},
			{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte(canary)}}},
		} {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "mcp-upstream", name), 3*time.Second)
			st, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
			if err == nil && msg != nil {
				err = st.Send(msg)
			}
			if err == nil {
				_ = st.CloseSend()
				_, err = st.Recv() // the reply itself carries the token: Envoy is who may have it
			}
			if err != nil {
				r.heard(reply{body: err.Error()})
			}
			cancel()
		}
	}
	r.forgedLog(t, conn)
}

// forged is a request id of outcomes that never were. Ids are told on purpose: it is
// what shows that such an outcome was taken.
const forged = "id-of-a-call-that-never-was"

// forgedLog reports outcomes that never were.
func (r *rig) forgedLog(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	st, err := alsv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, token := range []string{canary, "0a1b2c3d"} { // the second is what a fingerprint looks like
		ours, err := structpb.NewStruct(map[string]any{
			"upstream": "alpha", "caller": canary, "issuer": canary, "subject": canary, "reason": canary, "token": token,
		})
		if err != nil {
			t.Fatal(err)
		}
		before := r.logged()
		if err := st.Send(&alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
			HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*accesslogv3.HTTPAccessLogEntry{{
				CommonProperties: &accesslogv3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"mcp_auth": ours}}},
				Request:          &accesslogv3.HTTPRequestProperties{RequestId: forged},
				Response: &accesslogv3.HTTPResponseProperties{ResponseHeaders: map[string]string{
					"x-mcp-auth-reason": []string{canary, "upstream_rejected"}[i],
				}},
			}}},
		}}); err != nil {
			t.Fatal(err)
		}
		r.eventually("it is read", 3*time.Second, func() bool { return r.logged() > before })
	}
	_, err = st.CloseAndRecv()
	if err != nil {
		r.heard(reply{body: err.Error()})
	}
}

// commands print about secrets.
func (r *rig) commands(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"token", "-c", r.policy, "--upstream", "alpha"},
		{"token", "-c", r.policy, "--upstream", "beta", "-o", "json"},
		{"check", "-c", r.policy},
		{"render", "litellm", "-c", r.policy},
		{"render", "envoy", "-c", r.policy},
		{"explain", "-c", r.policy, "--upstream", "alpha", "-H", "Authorization: Bearer " + callerToken, "-H", "Cookie: session_id=1; t=" + canary},
		{"explain", "-c", r.policy, "--upstream", "keyed", "-o", "json", "-H", "x-mcp-auth-key: " + callerKey},
		{"explain", "-c", r.policy, "--upstream", "keyed", "-H", "x-mcp-auth-key: " + canary},
	} {
		cmd := r.command(args...)
		out, _ := cmd.CombinedOutput() // a refusal is an answer too
		if len(out) == 0 && args[0] != "check" {
			t.Errorf("%v: want output", args)
		}
		r.heard(reply{body: string(out)})
	}
}

// faultyIssuer has the authorization server say back what it was sent, and worse.
func (r *rig) faultyIssuer(t *testing.T) {
	t.Helper()
	for _, f := range canaryFaults() {
		r.issuer.Fail(f)
		r.issuer.Revoke()
		up := upstreamOf(f)
		r.up(up).answer(r.guarded(length))
		got := r.post("/"+up+"/mcp", "{}", own(up)...)
		if got.status != http.StatusBadGateway && got.status != http.StatusServiceUnavailable {
			t.Errorf("%s: want a refusal, got %v", f, got)
		}
		r.told = append(r.told, r.keep("/status"), r.keep("/metrics"))
		r.issuer.Heal()
	}
}
