package extproc

import (
	"encoding/json"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// post is a request with a body that was not sent yet, by the caller ci.
func post(headers ...string) *extprocv3.ProcessingRequest {
	return headersRequest(nil, nil, append([]string{
		":method", "POST", "content-type", "application/json", "x-mcp-auth-key", "key", "cookie", "session=1; x=2", "authorization", "Bearer caller",
	}, headers...)...)
}

func bodyRequest(body string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true},
	}}
}

func callOf(tool string) string {
	return `{"jsonrpc":"2.0","id":"q-1","method":"tools/call","params":{"name":"` + tool + `","arguments":{}}}`
}

// judged runs headers and body for the upstream ruled through Process, and
// returns the last reply.
func (r *rig) judged(t *testing.T, req *extprocv3.ProcessingRequest, body string) *extprocv3.ProcessingResponse {
	t.Helper()
	s := newStream(t, []string{"ruled"}, req, bodyRequest(body))
	if err := r.Process(s); err != nil {
		t.Fatal(err)
	}
	if len(s.sent) == 2 {
		checkAsksOnly(t, s.sent[0], false)
	}
	return s.sent[len(s.sent)-1]
}

// checkAsksOnly holds that a reply which asks for the body lets nothing through:
// it has neither our mark nor any other change, so that the guard stops a stream
// that ends there.
func checkAsksOnly(t *testing.T, resp *extprocv3.ProcessingResponse, answers bool) {
	t.Helper()
	headers := extprocfilterv3.ProcessingMode_SKIP
	if answers {
		headers = extprocfilterv3.ProcessingMode_SEND
	}
	want := &extprocv3.ProcessingResponse{
		Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}},
		ModeOverride: &extprocfilterv3.ProcessingMode{
			RequestBodyMode:     extprocfilterv3.ProcessingMode_BUFFERED,
			ResponseHeaderMode:  headers,
			RequestTrailerMode:  extprocfilterv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocfilterv3.ProcessingMode_SKIP,
		},
	}
	if diff := cmp.Diff(want, resp, protocmp.Transform()); diff != "" {
		t.Fatalf("E1: a reply that asks for the body changes something (-want +got):\n%s", diff)
	}
}

// reasonOf is how the request ended.
func reasonOf(resp *extprocv3.ProcessingResponse) string {
	reason, _ := described(resp)["reason"].(string)
	return reason
}

func TestBodyThatMayPassGetsEverythingWithItsLastReply(t *testing.T) {
	r := newRig(t)
	resp := r.judged(t, post(), callOf("ticket_new"))
	set, removed := changes(resp)
	if resp.GetRequestBody() == nil || set["authorization"] != "Bearer tok-1" || set[guardHeader] != "ruled" || set["cookie"] != "session=1" {
		t.Errorf("want the credential, our mark and the cookie in a reply to the body, got %v", resp)
	}
	if !removed["x-mcp-auth-key"] || resp.GetModeOverride() != nil {
		t.Errorf("got %v", resp)
	}
	if d := described(resp); d["tool"] != "ticket_new" || d["caller"] != "ci" {
		t.Errorf("metadata = %v", d)
	}
	if d := r.seen.list; len(d) != 1 || d[0].Tool != "ticket_new" || d[0].Rule != 1 {
		t.Errorf("want one decision with tool and rule, got %+v", d)
	}
}

// TestToolVerdicts holds what each proof and each rule make of a request.
func TestToolVerdicts(t *testing.T) {
	get := func(headers ...string) *extprocv3.ProcessingRequest {
		req := headersRequest(nil, nil, append([]string{":method", "GET", "x-mcp-auth-key", "key"}, headers...)...)
		req.GetRequestHeaders().EndOfStream = true
		return req
	}
	bodiless := func(req *extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest {
		req.GetRequestHeaders().EndOfStream = true
		return req
	}
	batch := func(calls ...string) string { return "[" + strings.Join(calls, ",") + "]" }
	for _, tc := range []struct {
		name, body string
		req        *extprocv3.ProcessingRequest
		want       policy.Reason
		id         any
	}{
		{"S7 not in the policy", callOf("drop"), post(), policy.ToolDenied, "q-1"},
		{"A6 by a scope that another includes", callOf("customer"), post(), policy.Allowed, nil},
		{"S6 without the scope", callOf("purge"), post(), policy.ScopeMissing, "q-1"},
		{"the lists", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, post(), policy.Allowed, nil},
		{"a stream of the server's messages", "", get(), policy.Allowed, nil},
		{"a GET with a body", callOf("read"), headersRequest(nil, nil, ":method", "GET", "x-mcp-auth-key", "key", "content-type", "application/json"), policy.ToolUnproved, nil},
		{"a PUT", callOf("read"), headersRequest(nil, nil, ":method", "PUT", "x-mcp-auth-key", "key", "content-type", "application/json"), policy.ToolUnproved, nil},
		{"a POST without a body", "", bodiless(post()), policy.ToolUnproved, nil},
		{"an empty body", "", post(), policy.ToolUnproved, nil},
		{"S1 H2 a lying name", callOf("drop"), post("mcp-method", "tools/call", "mcp-name", "read"), policy.HeaderMismatch, "q-1"},
		{"S3 a name twice", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","name":"drop"}}`, post(), policy.ToolUnproved, nil},
		{"S3 a name in another case", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","Name":"drop"}}`, post(), policy.ToolUnproved, nil},
		{"S4 a batch with a denied call", batch(callOf("read"), callOf("drop")), post(), policy.ToolDenied, nil},
		{"H8 a batch of permitted calls", batch(callOf("read"), callOf("customer")), post(), policy.Allowed, nil},
		{"S4 two documents", callOf("read") + callOf("drop"), post(), policy.ToolUnproved, nil},
		{"S4 gzip", callOf("read"), post("content-encoding", "gzip"), policy.ToolUnproved, nil},
		{"S5 two names", callOf("read"), post("mcp-name", "read", "mcp-name", "drop"), policy.BadRequest, nil},
		{"H12 a length that is too large, without a look at the body", "", post("content-length", "4097"), policy.BodyTooLarge, nil},
		{"H12 a body that is too large", callOf("read") + strings.Repeat(" ", 4096), post(), policy.BodyTooLarge, nil},
		{"H12 a body that is large beyond any header", strings.Repeat(" ", 300<<10), post(), policy.BodyTooLarge, nil},
		{"a body of the largest size", callOf("read") + strings.Repeat(" ", 4096-len(callOf("read"))), post(), policy.Allowed, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			resp := r.judged(t, tc.req, tc.body)
			if got := reasonOf(resp); got != tc.want.String() {
				t.Fatalf("got %s, want %s", got, tc.want)
			}
			if tc.want == policy.Allowed {
				return
			}
			var body struct {
				ID    any
				Error struct{ Code int }
			}
			if err := json.Unmarshal(resp.GetImmediateResponse().GetBody(), &body); err != nil {
				t.Fatal(err)
			}
			if body.ID != tc.id {
				t.Errorf("T14: got id %v, want %v", body.ID, tc.id)
			}
			if tc.want == policy.HeaderMismatch && body.Error.Code != -32020 {
				t.Errorf("T10: got code %d, want -32020", body.Error.Code)
			}
			if int(resp.GetImmediateResponse().GetStatus().GetCode()) != tc.want.Status() || r.auth.requests.Load() != 0 {
				t.Errorf("got status %v after %d token requests", resp.GetImmediateResponse().GetStatus(), r.auth.requests.Load())
			}
			if log := r.log.String(); strings.Count(log, "\n") != 1 || strings.Contains(log, "arguments") ||
				tc.want == policy.ToolUnproved && !strings.Contains(log, `"cause":`) {
				t.Errorf("want one line of log without anything of the body, got %q", log)
			}
		})
	}
}

// TestH4HeadersAsProof: one message, and only for a version whose servers compare.
func TestH4HeadersAsProof(t *testing.T) {
	modern := []string{"mcp-protocol-version", "2026-07-28"}
	with := func(h ...string) []string { return append(h, modern...) }
	for name, tc := range map[string]struct {
		headers []string
		want    policy.Reason
	}{
		"H4 permitted":                       {with("mcp-method", "tools/call", "mcp-name", "read"), policy.Allowed},
		"H3 permitted in base64":             {with("mcp-method", "tools/call", "mcp-name", "=?base64?cmVhZA==?="), policy.Allowed},
		"a list":                             {with("mcp-method", "tools/list"), policy.Allowed},
		"S7 denied":                          {with("mcp-method", "tools/call", "mcp-name", "drop"), policy.ToolDenied},
		"H1 no method":                       {modern, policy.ToolUnproved},
		"H1 no name":                         {with("mcp-method", "tools/call"), policy.ToolUnproved},
		"a URI that a server may shorten":    {with("mcp-method", "resources/read", "mcp-name", "crm://public/../secret"), policy.ToolUnproved},
		"a name that a server may trim":      {with("mcp-method", "tools/call", "mcp-name", "=?base64?cmVhZCA=?="), policy.ToolUnproved},
		"H4 an older version":                {[]string{"mcp-protocol-version", "2025-11-25", "mcp-method", "tools/call", "mcp-name", "read"}, policy.ToolUnproved},
		"H4 a version nobody knows":          {[]string{"mcp-protocol-version", "2027-01-01", "mcp-method", "tools/call", "mcp-name", "read"}, policy.ToolUnproved},
		"H4 no version":                      {[]string{"mcp-method", "tools/call", "mcp-name", "read"}, policy.ToolUnproved},
		"a rule about what no header proves": {with("mcp-method", "completion/complete"), policy.ToolUnproved},
		"nothing is read of a large body":    {with("mcp-method", "tools/call", "mcp-name", "read", "content-length", "99999999"), policy.Allowed},
	} {
		t.Run(name, func(t *testing.T) {
			if got := reasonOf(newRig(t).call(t, "by_headers", post(tc.headers...))); got != tc.want.String() {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// filtered adds what Envoy's mcp filter says to a request.
func filtered(t *testing.T, req *extprocv3.ProcessingRequest, members map[string]any) *extprocv3.ProcessingRequest {
	t.Helper()
	st, err := structpb.NewStruct(members)
	if err != nil {
		t.Fatal(err)
	}
	req.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{filterNamespace: st}}
	return req
}

func TestFilterAsProof(t *testing.T) {
	says := func(status, method string, params map[string]any) map[string]any {
		return map[string]any{"status": status, "method": method, "params": params, "id": 1, "is_mcp_request": true, "jsonrpc": "2.0"}
	}
	for name, tc := range map[string]struct {
		req     *extprocv3.ProcessingRequest
		members map[string]any
		want    policy.Reason
	}{
		"permitted":                   {post(), says("mcp_ok", "tools/call", map[string]any{"name": "read"}), policy.Allowed},
		"S7 denied":                   {post(), says("mcp_ok", "tools/call", map[string]any{"name": "drop"}), policy.ToolDenied},
		"a URI with dots":             {post(), says("mcp_ok", "resources/read", map[string]any{"uri": "crm://public/../secret"}), policy.ToolUnproved},
		"a method with a blank":       {post(), says("mcp_ok", "tools/call ", nil), policy.ToolUnproved},
		"a list":                      {post(), says("mcp_ok", "tools/list", nil), policy.Allowed},
		"a response":                  {post(), says("mcp_ok", "__jsonrpc_response", nil), policy.Allowed},
		"a completion, without a ref": {post(), says("mcp_ok", "completion/complete", nil), policy.Allowed},
		"S2 no name":                  {post(), says("mcp_ok", "tools/call", nil), policy.ToolUnproved},
		"a name that is no text":      {post(), says("mcp_ok", "tools/call", map[string]any{"name": 5}), policy.ToolUnproved},
		"S4 it could not read it":     {post(), says("mcp_not_jsonrpc", "tools/call", map[string]any{"name": "read"}), policy.ToolUnproved},
		"no filter":                   {post(), nil, policy.ToolUnproved},
		"S1 a header that differs":    {post("mcp-name", "read"), says("mcp_ok", "tools/call", map[string]any{"name": "ready"}), policy.HeaderMismatch},
		"H6 a method that differs":    {post("mcp-method", "tools/list"), says("mcp_ok", "tools/call", map[string]any{"name": "read"}), policy.HeaderMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			req := tc.req
			if tc.members != nil {
				req = filtered(t, req, tc.members)
			}
			if got := reasonOf(newRig(t).call(t, "by_filter", req)); got != tc.want.String() {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestA5_ToolScopesInOneChallenge: a token counts for what its scopes say, and one
// that lacks some is told all that the request and the caller's rule need at once.
func TestA5_ToolScopesInOneChallenge(t *testing.T) {
	r := newJWTRig(t)
	const ask = `Bearer error="insufficient_scope", resource_metadata="https://mcp.company.com/.well-known/oauth-protected-resource/ruled/mcp", scope="`
	for _, tc := range []struct {
		name, scope, body, want string
		reason                  policy.Reason
	}{
		{"S6 one call", peoplesScopes, callOf("ticket_new"), ask + peoplesScopes + ` ticket:read ticket:create"`, policy.ScopeMissing},
		{"some of them", peoplesScopes + " ticket:read", callOf("ticket_new"), ask + peoplesScopes + ` ticket:read ticket:create"`, policy.ScopeMissing},
		{"a batch", peoplesScopes, "[" + callOf("ticket_new") + "," + callOf("purge") + "]", ask + peoplesScopes + ` ticket:read ticket:create purge"`, policy.ScopeMissing},
		{"A6 all of them, one by another", peoplesScopes + " desk ticket:create", callOf("ticket_new"), "", policy.Allowed},
		{"S7 no scope would help", peoplesScopes, callOf("drop"), "", policy.ToolDenied},
		{"the caller's own scopes come first", "mcp.read", callOf("ticket_new"), ask + peoplesScopes + `"`, policy.ScopeMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := headersRequest(nil, nil, ":method", "POST", "content-type", "application/json", "authorization", "Bearer "+mint(t, r.idp, tc.scope, nil))
			resp := r.judged(t, req, tc.body)
			set, _ := changes(resp)
			if reasonOf(resp) != tc.reason.String() || set["www-authenticate"] != tc.want {
				t.Errorf("got %s %s, want %s %s", reasonOf(resp), set["www-authenticate"], tc.reason, tc.want)
			}
		})
	}
	byKey := headersRequest(nil, nil, ":method", "POST", "content-type", "application/json", "x-mcp-auth-key", "key")
	resp := r.judged(t, byKey, callOf("ticket_new"))
	if set, _ := changes(resp); reasonOf(resp) != policy.ScopeMissing.String() || set["www-authenticate"] != "" {
		t.Errorf("a caller without a token is asked for one: %v", resp)
	}
}

// TestVerdictStandsOnARetry: attempt 2 asks for no body.
func TestVerdictStandsOnARetry(t *testing.T) {
	r := newRig(t)
	verdict := described(r.judged(t, post(), callOf("read")))
	req := headersRequest(nil, verdict, ":method", "POST", "content-type", "application/json", "authorization", "Bearer tok-1", "x-envoy-attempt-count", "2")
	resp := r.call(t, "ruled", req)
	if set, _ := changes(resp); set["authorization"] != "Bearer tok-2" || described(resp)["tool"] != "read" {
		t.Errorf("want a new token and the tool of attempt 1, got %v", resp)
	}
	req = headersRequest(nil, nil, ":method", "POST", "x-mcp-auth-key", "key", "x-envoy-attempt-count", "2")
	if got := reasonOf(r.call(t, "ruled", req)); got != policy.CallerUnknown.String() {
		t.Errorf("without a verdict: got %s", got)
	}
}

// meanwhile is a stream on which something happens before its second message.
type meanwhile struct {
	*stream
	do   func()
	seen int
}

func (m *meanwhile) RecvMsg(msg any) error {
	if m.seen++; m.seen == 2 {
		m.do()
	}
	return m.stream.RecvMsg(msg)
}

// TestA11_ABodyThatComesLate: who had a session as its first user must not keep a
// request of it open, and go on when its owner is known.
func TestA11_ABodyThatComesLate(t *testing.T) {
	r := newSessionRig(t)
	r.reload(t, sessionPolicy()+"  ruled: {url: 'https://ruled.test/mcp', tools: {rules: [{names: [read]}]}}\n")
	late := func(caller, id string, do func()) string {
		s := newStream(t, []string{"ruled"}, headersRequest(nil, nil, ":method", "POST", "content-type", "application/json",
			"x-mcp-auth-key", caller, "mcp-session-id", id), bodyRequest(callOf("read")))
		if err := r.Process(&meanwhile{stream: s, do: do}); err != nil {
			t.Fatal(err)
		}
		return reasonOf(s.sent[len(s.sent)-1])
	}
	if got := late("bob", "s", func() {}); got != "allowed" {
		t.Fatalf("the first user: got %s", got)
	}
	get := headersRequest(nil, nil, ":method", "GET", "x-mcp-auth-key", "alice")
	get.GetRequestHeaders().EndOfStream = true
	owned := func() {
		r.report(t, answered(200, corev3.RequestMethod_POST, described(r.call(t, "ruled", get)), "", "s"))
	}
	if got := late("bob", "s", owned); got != "session_mismatch" {
		t.Errorf("after the log's word: got %s", got)
	}
	if got := late("alice", "s", func() {}); got != "allowed" {
		t.Errorf("the owner: got %s", got)
	}
}

// TestE1OrderOfParts: what was not asked for is an error of the stream, and so is
// an end while a body is awaited.
func TestE1OrderOfParts(t *testing.T) {
	r := newRig(t)
	trailers := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
	response := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}}
	huge := bodyRequest(strings.Repeat("x", 4<<10+2<<20))
	for name, tc := range map[string]struct {
		then []*extprocv3.ProcessingRequest
		want codes.Code
	}{
		"the end of the stream":    {nil, codes.Unavailable},
		"a second set of headers":  {[]*extprocv3.ProcessingRequest{post(), bodyRequest(callOf("read"))}, codes.FailedPrecondition},
		"trailers":                 {[]*extprocv3.ProcessingRequest{trailers}, codes.FailedPrecondition},
		"a response":               {[]*extprocv3.ProcessingRequest{response}, codes.FailedPrecondition},
		"a body beyond all bounds": {[]*extprocv3.ProcessingRequest{huge}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, []string{"ruled"}, append([]*extprocv3.ProcessingRequest{post()}, tc.then...)...)
			if err := r.Process(s); status.Code(err) != tc.want {
				t.Errorf("Process = %v, want %v", err, tc.want)
			}
			for _, resp := range s.sent {
				checkAsksOnly(t, resp, false)
			}
		})
	}
	s := newStream(t, []string{"a"}, headersRequest(nil, nil), bodyRequest(callOf("read")))
	if err := r.Process(s); err != nil || len(s.in) != 1 {
		t.Errorf("an upstream without rules: Process = %v, want nil before the body is looked at", err)
	}
}

// TestBodyMemoryIsNotKept: a large body must not stay with the pool.
func TestBodyMemoryIsNotKept(t *testing.T) {
	var m message
	m.reset(nil)
	m.room = 2 << 20
	for _, req := range []*extprocv3.ProcessingRequest{post(), bodyRequest(strings.Repeat("x", 1<<20))} {
		wire, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, &m); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.body) != 1<<20 || string(m.req.Headers[0].Value) != "POST" {
		t.Fatalf("got %d bytes of a body, first header %q", len(m.body), m.req.Headers[0].Value)
	}
	m.shrink()
	if cap(m.buf) > kept || m.body != nil {
		t.Errorf("%d bytes are kept", cap(m.buf))
	}
}

// TestCallsOfABadBodyAreNotKept: they alias a body, which would stay with the pool.
func TestCallsOfABadBodyAreNotKept(t *testing.T) {
	tools := policy.Tools{MaxBody: 4096}
	room := make([]policy.Call, 0, 4)
	_, reason, _ := tools.ByBody(&policy.Standard{}, []byte("["+callOf("read")+",{}]"), room)
	if got := room[:1][0]; reason != policy.ToolUnproved || got.Method != nil {
		t.Errorf("%v: %q is kept", reason, got.Method)
	}
}

// TestToolNamesAreBounded: a log has no room for what a caller makes up.
func TestToolNamesAreBounded(t *testing.T) {
	for _, tc := range []struct{ method, target, want string }{
		{"tools/call", "read", "read"},
		{"resources/read", "file:///a b", "resources/read file:///ab"},
		// L9: what of a URI is an argument, or worse.
		{"resources/read", "https://me:secret@files.test/a@b?token=secret#secret", "resources/read https://files.test/a@b"},
		{"resources/read", "db://me@", "resources/read db://"},
		{"resources/read", "note:?secret", "resources/read note:"},
		{"tools/list", "", "tools/list"},
		{"tools/call", "a\x1b[31m\né", "a[31m"},
		{"x" + strings.Repeat("y", 100), strings.Repeat("z", 1000), "x" + strings.Repeat("y", 63) + " " + strings.Repeat("z", 128)},
	} {
		if got := ToolName(&policy.Call{Method: []byte(tc.method), Target: []byte(tc.target)}); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}
