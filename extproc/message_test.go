package extproc

import (
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// headersRequest is a ProcessingRequest as Envoy builds it.
func headersRequest(attributes, prior map[string]any, headers ...string) *extprocv3.ProcessingRequest {
	hm := &corev3.HeaderMap{}
	for pair := range slices.Chunk(headers, 2) {
		hm.Headers = append(hm.Headers, &corev3.HeaderValue{Key: pair[0], RawValue: []byte(pair[1])})
	}
	req := &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: hm}},
	}
	if attributes != nil {
		s, _ := structpb.NewStruct(attributes)
		req.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": s}
	}
	if prior != nil {
		s, _ := structpb.NewStruct(prior)
		other, _ := structpb.NewStruct(map[string]any{"upstream": "spoofed", "caller": "spoofed"})
		req.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespace: s, "other": other}}
	}
	return req
}

// decoded reads wire bytes as the codec does.
func decoded(wire []byte) (*message, error) {
	m := &message{}
	m.reset(knownNames())
	err := codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, m)
	return m, err
}

func TestMessageReadsWhatEnvoySends(t *testing.T) {
	req := headersRequest(
		map[string]any{
			"xds.cluster_name": "protected", "xds.route_name": "r1", "other": 7.5,
			"connection.uri_san_peer_certificate": "spiffe://a/b", "connection.dns_san_peer_certificate": "b.test",
		},
		map[string]any{"upstream": "protected", "caller": "litellm", "reason": "allowed", "token": "abcd"},
		":path", "/mcp", "cookie", "a=1", "cookie", "b=\xff", "x-request-id", "id-1", "x-empty", "",
	)
	wire, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	m, err := decoded(wire)
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Request{
		Cluster: "protected", Route: "r1", URISAN: "spiffe://a/b", DNSSAN: "b.test",
		Headers: []policy.Header{
			{Name: ":path", Value: []byte("/mcp")},
			{Name: "cookie", Value: []byte("a=1")},
			{Name: "cookie", Value: []byte("b=\xff")},
			{Name: "x-request-id", Value: []byte("id-1")},
			{Name: "x-empty"},
		},
	}
	if diff := cmp.Diff(want, m.req); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if want := (prior{upstream: "protected", caller: "litellm", reason: "allowed"}); m.prior != want {
		t.Errorf("prior = %+v, want %+v", m.prior, want)
	}
	if m.phase != phaseRequestHeaders || string(m.requestID) != "id-1" {
		t.Errorf("phase %d, request id %q", m.phase, m.requestID)
	}
}

func TestMessageReadsValueWhenRawValueIsAbsent(t *testing.T) {
	hm := &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "origin", Value: "https://a.test"}}}
	wire, err := proto.Marshal(&extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: hm}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := decoded(wire)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(m.req.Headers[0].Value); got != "https://a.test" {
		t.Errorf("origin = %q", got)
	}
}

func TestMessageAllocations(t *testing.T) {
	wire, err := proto.Marshal(headersRequest(map[string]any{"xds.cluster_name": "protected"}, nil,
		":method", "POST", ":path", "/mcp", "authorization", "Bearer caller", "cookie", "a=1; b=2",
		"content-type", "application/json", "x-request-id", "id-1"))
	if err != nil {
		t.Fatal(err)
	}
	known := knownNames()
	known["protected"] = "protected"
	m := &message{}
	in := mem.BufferSlice{mem.SliceBuffer(wire)}
	var c any = codec{}
	if n := testing.AllocsPerRun(100, func() {
		m.reset(known)
		if err := c.(codec).Unmarshal(in, m); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("reading a message allocates %v times, want 0", n)
	}
}

// FuzzMessage holds our reader against the generated one: what Envoy's types
// understand, it reads alike, and nothing makes it panic.
func FuzzMessage(f *testing.F) {
	for _, req := range []*extprocv3.ProcessingRequest{
		headersRequest(nil, nil, "a", "b"),
		headersRequest(map[string]any{"xds.cluster_name": "c"}, map[string]any{"upstream": "c"}, ":path", "/"),
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: []byte("x")}}},
	} {
		wire, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		m, err := decoded(wire)
		var ref extprocv3.ProcessingRequest
		if proto.Unmarshal(wire, &ref) != nil {
			return // refusing or skipping are both right
		}
		if err != nil {
			t.Fatalf("%x: the generated types read it, we say %v", wire, err)
		}
		headers := ref.GetRequestHeaders().GetHeaders().GetHeaders()
		if m.phase == phaseRequestHeaders && len(headers) > 0 && len(headers) > len(m.req.Headers) {
			t.Fatalf("%x: %d headers, we read %d", wire, len(headers), len(m.req.Headers))
		}
	})
}
