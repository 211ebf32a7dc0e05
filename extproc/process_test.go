package extproc

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func TestAllowedRequestGetsTheTokenAndLosesTheCallersSecrets(t *testing.T) {
	r := newRig(t)
	resp := r.call(t, "a", headersRequest(nil, nil,
		":path", "/mcp", "authorization", "Bearer caller", "cookie", "session=1; tracking=2",
		"x-litellm-api-key", "sk-1", "x-mcp-a-host", "evil.example", "x-mcp-a-authorization", "Bearer evil"))
	set, removed := changes(resp)
	if set["authorization"] != "Bearer tok-1" || set["cookie"] != "session=1" || set[guardHeader] != "a" {
		t.Errorf("set = %v", set)
	}
	for _, n := range []string{"x-litellm-api-key", "x-mcp-a-host", "x-mcp-a-authorization", "proxy-authorization", "x-mcp-auth-key"} {
		if !removed[n] {
			t.Errorf("%s is not removed", n)
		}
	}
	for n := range removed {
		if _, both := set[n]; both {
			t.Errorf("%s is both set and removed: Envoy would remove it", n)
		}
	}
	d := described(resp)
	if d["upstream"] != "a" || d["caller"] != "anyone" || d["reason"] != "allowed" || len(d["token"].(string)) != 8 {
		t.Errorf("metadata = %v", d)
	}
	if log := r.log.String(); log != "" {
		t.Errorf("a request that goes on is logged: %s", log)
	}
	if len(r.seen.list) != 1 || r.seen.list[0].CookiesKept != 1 || r.seen.list[0].CookiesDropped != 1 {
		t.Errorf("decisions = %+v", r.seen.list)
	}
}

func TestCredentialKinds(t *testing.T) {
	r := newRig(t)
	set, removed := changes(r.call(t, "fixed", headersRequest(nil, nil, "x-api-key", "callers", "authorization", "Bearer c")))
	if set["x-api-key"] != "api-canary" || removed["x-api-key"] || !removed["authorization"] {
		t.Errorf("fixed header: set %v, removed %v", set, removed)
	}
	set, removed = changes(r.call(t, "open", headersRequest(nil, nil, "authorization", "Bearer c")))
	if _, has := set["authorization"]; has || !removed["authorization"] || !removed["cookie"] {
		t.Errorf("credential none: set %v, removed %v", set, removed)
	}
	if r.auth.requests.Load() != 0 {
		t.Error("a token was fetched for an upstream that is lent none")
	}
}

// TestRefusals holds each row of the table of refusals: status, reason word,
// fixed body, and nothing of the caller.
func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		name     string
		upstream []string
		req      *extprocv3.ProcessingRequest
		prepare  func(*rig)
		want     policy.Reason
		retry    bool
	}{
		{name: "no identity", req: headersRequest(nil, nil), want: policy.NoPolicy},
		{name: "unknown upstream", upstream: []string{"x"}, req: headersRequest(nil, nil), want: policy.NoPolicy},
		{name: "two identities", upstream: []string{"a", "b"}, req: headersRequest(nil, nil), want: policy.BadRequest},
		{
			name: "metadata and cluster disagree", upstream: []string{"a"},
			req: headersRequest(map[string]any{"xds.cluster_name": "b"}, nil), want: policy.BadRequest,
		},
		{
			name: "C2 caller names the upstream in a header", upstream: nil,
			req: headersRequest(nil, nil, "mcp-upstream", "a", "x-mcp-upstream", "a"), want: policy.NoPolicy,
		},
		{name: "T11 origin", upstream: []string{"a"}, req: headersRequest(nil, nil, "origin", "https://evil.test"), want: policy.OriginDenied},
		{name: "no proof", upstream: []string{"b"}, req: headersRequest(nil, nil), want: policy.CallerUnknown},
		{name: "bad key", upstream: []string{"b"}, req: headersRequest(nil, nil, "x-mcp-auth-key", "wrong"), want: policy.CallerInvalid},
		{name: "two keys", upstream: []string{"b"}, req: headersRequest(nil, nil, "x-mcp-auth-key", "key,key"), want: policy.BadRequest},
		{
			name: "certificate as a header", upstream: []string{"b"},
			req: headersRequest(nil, nil, "x-forwarded-client-cert", "URI=spiffe://a/b"), want: policy.CallerUnknown,
		},
		{name: "C5 duplicate cookie", upstream: []string{"once"}, req: headersRequest(nil, nil, "cookie", "s=1; s=2"), want: policy.BadRequest},
		{
			name: "attempt 2 without the verdict of attempt 1", upstream: []string{"a"},
			req: headersRequest(nil, nil, "x-envoy-attempt-count", "2"), want: policy.CallerUnknown,
		},
		{
			name: "attempt 2 with the verdict of another upstream", upstream: []string{"a"},
			req:  headersRequest(nil, map[string]any{"upstream": "b", "caller": "anyone", "reason": "allowed"}, "x-envoy-attempt-count", "2"),
			want: policy.CallerUnknown,
		},
		{
			name: "attempt 2 by a caller the policy no longer has", upstream: []string{"a"},
			req:  headersRequest(nil, map[string]any{"upstream": "a", "caller": "gone", "reason": "allowed"}, "x-envoy-attempt-count", "2"),
			want: policy.CallerUnknown,
		},
		{
			name: "token endpoint down", upstream: []string{"a"}, req: headersRequest(nil, nil),
			prepare: func(r *rig) { r.auth.fail.Store(503) }, want: policy.TokenUnavailable, retry: true,
		},
		{
			name: "token endpoint hangs", upstream: []string{"a"}, req: headersRequest(nil, nil),
			prepare: func(r *rig) { r.hurry(t); r.auth.hang.Store(true) }, want: policy.TokenUnavailable, retry: true,
		},
		{
			name: "token endpoint refuses us", upstream: []string{"a"}, req: headersRequest(nil, nil),
			prepare: func(r *rig) { r.auth.fail.Store(401) }, want: policy.TokenRefused,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			if tc.prepare != nil {
				tc.prepare(r)
			}
			s := newStream(t, tc.upstream, tc.req)
			if err := r.Process(s); err != nil {
				t.Fatal(err)
			}
			checkRefusal(t, s.sent[0], tc.want, tc.retry)
			if log := r.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, tc.want.String()) {
				t.Errorf("want one log line with the reason, got %q", log)
			}
		})
	}
}

func checkRefusal(t *testing.T, resp *extprocv3.ProcessingResponse, want policy.Reason, retry bool) {
	t.Helper()
	im := resp.GetImmediateResponse()
	if im == nil {
		t.Fatalf("no immediate response: %v", resp)
	}
	set, _ := changes(resp)
	if int(im.GetStatus().GetCode()) != want.Status() || set[reasonHeader] != want.String() {
		t.Errorf("status %d, reason %q, want %d %q", im.GetStatus().GetCode(), set[reasonHeader], want.Status(), want)
	}
	if set["cache-control"] != "no-store" || set["content-type"] != "application/json" {
		t.Errorf("headers = %v", set)
	}
	if (set["retry-after"] != "") != retry {
		t.Errorf("retry-after = %q, want one: %v", set["retry-after"], retry)
	}
	var body struct {
		ID    any
		Error struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal(im.GetBody(), &body); err != nil {
		t.Fatal(err)
	}
	if body.ID != nil || body.Error.Message != want.Text() || body.Error.Code >= -32768 && body.Error.Code <= -32000 {
		t.Errorf("body = %s", im.GetBody())
	}
	if described(resp)["reason"] != want.String() {
		t.Errorf("metadata = %v", described(resp))
	}
}

func TestO18RevokedTokenIsReplacedOnAttemptTwo(t *testing.T) {
	r := newRig(t)
	first := r.call(t, "a", headersRequest(nil, nil))
	verdict := described(first)
	again := func(rejected string) string {
		set, _ := changes(r.call(t, "a", headersRequest(nil, verdict,
			"authorization", rejected, "x-envoy-attempt-count", "2")))
		return set["authorization"]
	}
	if got := again("Bearer tok-1"); got != "Bearer tok-2" {
		t.Errorf("after a 401 on tok-1 the call carries %q, want tok-2", got)
	}
	if got := again("Bearer tok-1"); got != "Bearer tok-2" {
		t.Errorf("a second call with tok-1 rejected carries %q, want the newer tok-2 without a fetch", got)
	}
	if n := r.auth.requests.Load(); n != 2 {
		t.Errorf("%d token requests, want 2", n)
	}
}

func TestO5UpstreamThatRejectsEveryTokenIsBounded(t *testing.T) {
	r := newRig(t)
	resp := r.call(t, "a", headersRequest(nil, nil))
	verdict := described(resp)
	for range 20 {
		set, _ := changes(resp)
		if resp.GetImmediateResponse() != nil {
			checkRefusal(t, resp, policy.UpstreamRejected, false)
			break
		}
		resp = r.call(t, "a", headersRequest(nil, verdict, "authorization", set["authorization"], "x-envoy-attempt-count", "2"))
	}
	if resp.GetImmediateResponse() == nil {
		t.Error("20 rejected tokens in a row and still no refusal")
	}
	if n := r.auth.requests.Load(); n > 4 {
		t.Errorf("%d token requests, want 1 and at most 3 caused by 401s", n)
	}
}

func TestCallersByKeyAndByCertificate(t *testing.T) {
	r := newRig(t)
	if d := described(r.call(t, "b", headersRequest(nil, nil, "x-mcp-auth-key", "key"))); d["caller"] != "ci" {
		t.Errorf("metadata = %v", d)
	}
	san := map[string]any{"connection.uri_san_peer_certificate": "spiffe://a/b"}
	if d := described(r.call(t, "b", headersRequest(san, nil))); d["caller"] != "mesh" {
		t.Errorf("metadata = %v", d)
	}
}

// TestE1StreamNeverEndsCleanlyBeforeAReply: each way a stream can end without
// one is an error, which Envoy answers with 500.
func TestE1StreamNeverEndsCleanlyBeforeAReply(t *testing.T) {
	r := newRig(t)
	body := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{}}}
	for _, tc := range []struct {
		name string
		s    *stream
		want codes.Code
	}{
		{"half-close before a message", newStream(t, []string{"a"}), codes.Unavailable},
		{"cancelled", &stream{ctx: t.Context(), recvErr: context.Canceled, t: t}, codes.Unavailable},
		{"a status of OK as the error", &stream{ctx: t.Context(), recvErr: io.EOF, t: t}, codes.Unavailable},
		{"body before headers", newStream(t, []string{"a"}, body), codes.FailedPrecondition},
		{"a message of no kind", newStream(t, []string{"a"}, &extprocv3.ProcessingRequest{}), codes.Unimplemented},
		{"garbage", &stream{ctx: t.Context(), in: [][]byte{{0xff}}, t: t}, codes.Unavailable},
		{"send fails", func() *stream {
			s := newStream(t, []string{"a"}, headersRequest(nil, nil))
			s.sendErr = io.EOF
			return s
		}(), codes.Unavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := r.Process(tc.s)
			if status.Code(err) != tc.want {
				t.Errorf("Process = %v, want %v", err, tc.want)
			}
			if len(tc.s.sent) > 0 {
				t.Errorf("sent %v", tc.s.sent)
			}
		})
	}
}

// panicker is an observer that fails.
type panicker struct{}

func (panicker) Decided(*Decision) { panic("Bearer caller-canary") } //nolint:forbidigo // the fault under test

func TestE2PanicIsAnErrorOfItsStreamAlone(t *testing.T) {
	r := newRig(t)
	r.cfg.Observe = panicker{}
	s := newStream(t, []string{"open"}, headersRequest(nil, nil, "authorization", "Bearer caller-canary"))
	if err := r.Process(s); status.Code(err) != codes.Internal || len(s.sent) > 0 {
		t.Errorf("Process = %v after %d replies, want Internal and none", err, len(s.sent))
	}
	if log := r.log.String(); !strings.Contains(log, "internal error") || strings.Contains(log, "canary") {
		t.Errorf("log = %s", log)
	}
	r.cfg.Observe = nil
	r.call(t, "open", headersRequest(nil, nil))
}

func TestE10ResponsePhasesAreAcknowledged(t *testing.T) {
	r := newRig(t)
	s := newStream(t, []string{"a"}, &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}},
	})
	if err := r.Process(s); err != nil || s.sent[0].GetResponseHeaders() == nil {
		t.Errorf("Process = %v, sent %v", err, s.sent)
	}
}

func TestDeadlineIsTheServersNotTheTokenEndpoints(t *testing.T) {
	r := newRig(t)
	r.hurry(t)
	r.auth.hang.Store(true)
	start := time.Now()
	checkRefusal(t, r.call(t, "a", headersRequest(nil, nil)), policy.TokenUnavailable, true)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the call waited %v, want about the deadline of 300ms", took)
	}
}

func TestS6NothingIsServedBeforeAPolicyIsLoaded(t *testing.T) {
	r := newRig(t)
	s, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	st := newStream(t, []string{"a"}, headersRequest(nil, nil))
	if err := s.Process(st); err != nil {
		t.Fatal(err)
	}
	checkRefusal(t, st.sent[0], policy.NoPolicy, false)
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Tokens") {
		t.Errorf("New = %v", err)
	}
}

// TestL1NoSecretInAnyOutput: the caller's and our own secrets are on the
// request that goes on, and nowhere else.
func TestL1NoSecretInAnyOutput(t *testing.T) {
	r := newRig(t)
	r.auth.fail.Store(401)
	resp := r.call(t, "a", headersRequest(nil, nil, "authorization", "Bearer caller-canary", "cookie", "session=cookie-canary", "x-request-id", "id\x00\x1b[31m"))
	for name, out := range map[string]string{"reply": resp.String(), "log": r.log.String()} {
		for _, canary := range []string{"s3cret-canary", "caller-canary", "cookie-canary", "api-canary", "tok-"} {
			if strings.Contains(out, canary) {
				t.Errorf("%s holds %s: %s", name, canary, out)
			}
		}
	}
	if strings.Contains(r.log.String(), `\u001b`) {
		t.Errorf("control characters of a request id reach the log: %s", r.log)
	}
}
