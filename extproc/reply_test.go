package extproc

import (
	"bytes"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// parsed reads a reply with Envoy's generated types.
func parsed(tb testing.TB, wire []byte) *extprocv3.ProcessingResponse {
	tb.Helper()
	var resp extprocv3.ProcessingResponse
	if err := proto.Unmarshal(wire, &resp); err != nil {
		tb.Fatalf("the reply is not a ProcessingResponse: %v", err)
	}
	if len(resp.ProtoReflect().GetUnknown()) > 0 {
		tb.Fatalf("the reply has unknown fields: %x", resp.ProtoReflect().GetUnknown())
	}
	return &resp
}

func set(name string, value []byte) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: value},
		Append:       wrapperspb.Bool(false), //nolint:staticcheck // deprecated, and what Envoy obeys
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// TestReplyIsWhatEnvoyReads covers lengths of one, two and three varint bytes.
func TestReplyIsWhatEnvoyReads(t *testing.T) {
	for _, n := range []int{0, 1, 100, 127, 128, 300, 16384, 70000} {
		value := bytes.Repeat([]byte{0xfe}, n)
		var r reply
		r.mutation = appendSet(r.mutation, "authorization", value)
		r.mutation = appendRemove(r.mutation, "cookie")
		r.meta = appendMember(r.meta, "upstream", strings.Repeat("u", n%1000))
		r.continueWith(phaseRequestHeaders)
		meta, err := structpb.NewStruct(map[string]any{namespace: map[string]any{"upstream": strings.Repeat("u", n%1000)}})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			value = nil
		}
		want := &extprocv3.ProcessingResponse{
			Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
				Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
					SetHeaders: []*corev3.HeaderValueOption{set("authorization", value)}, RemoveHeaders: []string{"cookie"},
				}},
			}},
			DynamicMetadata: meta,
		}
		if diff := cmp.Diff(want, parsed(t, r.wire), protocmp.Transform()); diff != "" {
			t.Errorf("length %d (-want +got):\n%s", n, diff)
		}
	}
}

func TestReplyImmediate(t *testing.T) {
	r := reply{mutation: appendSet(nil, "retry-after", "3"), meta: appendMember(nil, "reason", "no_policy")}
	r.immediate(403, []byte("body"), "mcp_auth_no_policy")
	got := parsed(t, r.wire).GetImmediateResponse()
	want := &extprocv3.ImmediateResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Forbidden},
		Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{set("retry-after", []byte("3"))}},
		Body:    []byte("body"),
		Details: "mcp_auth_no_policy",
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestReplyAcknowledgesEachPhase(t *testing.T) {
	var r reply
	r.acknowledge(phaseResponseHeaders)
	if parsed(t, r.wire).GetResponseHeaders() == nil {
		t.Error("response headers are not acknowledged")
	}
	r.acknowledge(phaseResponseBody)
	if parsed(t, r.wire).GetResponseBody() == nil {
		t.Error("a response body is not acknowledged")
	}
	r.acknowledge(phaseResponseTrailers)
	if parsed(t, r.wire).GetResponseTrailers() == nil {
		t.Error("response trailers are not acknowledged")
	}
}
