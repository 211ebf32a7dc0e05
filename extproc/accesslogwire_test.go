package extproc

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"
)

// whole is an entry with every field that is read.
func whole() *accesslogv3.HTTPAccessLogEntry {
	ours, _ := structpb.NewStruct(map[string]any{
		"upstream": "a", "caller": "ci", "reason": "allowed", "token": "0a1b2c3d", "tool": "read", "issuer": "https://i", "subject": "me",
		"own": "1250", "session": sessionSent, "mark": "m",
	})
	return &accesslogv3.HTTPAccessLogEntry{
		CommonProperties: &accesslogv3.AccessLogCommon{
			SampleRate: 1, StartTime: &timestamppb.Timestamp{Seconds: 1_800_000_000, Nanos: 5}, UpstreamCluster: "a", RouteName: "a",
			TimeToLastDownstreamTxByte: durationpb.New(1500 * time.Millisecond), Duration: durationpb.New(2 * time.Second),
			ResponseFlags:               &accesslogv3.ResponseFlags{UpstreamRemoteReset: true},
			Metadata:                    &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{namespace: ours}},
			UpstreamRequestAttemptCount: 2, AccessLogType: accesslogv3.AccessLogType_DownstreamEnd,
		},
		Request: &accesslogv3.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod_DELETE, RequestId: "r-1", RequestBodyBytes: 70_000,
			RequestHeaders: map[string]string{sessionHeader: "s-1", "x": "y"},
		},
		Response: &accesslogv3.HTTPResponseProperties{
			ResponseCode: wrapperspb.UInt32(200), ResponseBodyBytes: 1 << 40,
			ResponseHeaders: map[string]string{sessionHeader: "s-2", reasonHeader: "x"},
		},
	}
}

// read decodes one entry with the reader under test.
func read(t interface{ Fatalf(string, ...any) }, e *accesslogv3.HTTPAccessLogEntry) logged {
	wire, err := proto.Marshal(logOf(e))
	if err != nil {
		t.Fatalf("%v", err)
	}
	var m logMessage
	m.reset(knownNames())
	m.decode(wire)
	if len(m.entries) != 1 || m.malformed != 0 {
		t.Fatalf("want one entry, got %d and %d malformed", len(m.entries), m.malformed)
	}
	return m.entries[0]
}

// generated reads the same by the generated types.
func generated(e *accesslogv3.HTTPAccessLogEntry) logged {
	common := e.GetCommonProperties()
	ours := common.GetMetadata().GetFilterMetadata()[namespace]
	text := func(name string) string { return ours.GetFields()[name].GetStringValue() }
	kind := common.GetAccessLogType()
	out := logged{
		Outcome: Outcome{
			Upstream: text("upstream"), Caller: text("caller"), Reason: text("reason"), Token: text("token"),
			Tool: text("tool"), Issuer: text("issuer"), Subject: text("subject"),
			Status: int(e.GetResponse().GetResponseCode().GetValue()), Refusal: e.GetResponse().GetResponseHeaders()[reasonHeader],
			Attempts: int(common.GetUpstreamRequestAttemptCount()), RequestID: printable([]byte(e.GetRequest().GetRequestId()), 64),
			Decided: ours != nil, Own: micros([]byte(text("own"))), Took: common.GetTimeToLastDownstreamTxByte().AsDuration(),
			Sent: int64(e.GetResponse().GetResponseBodyBytes()), Received: int64(e.GetRequest().GetRequestBodyBytes()),
		},
		cluster: common.GetUpstreamCluster(), method: int(e.GetRequest().GetRequestMethod()), session: text("session"),
		used: e.GetRequest().GetRequestHeaders()[sessionHeader], given: e.GetResponse().GetResponseHeaders()[sessionHeader],
		under: common.GetIntermediateLogEntry() || kind != accesslogv3.AccessLogType_NotSet && kind != accesslogv3.AccessLogType_DownstreamEnd, //nolint:staticcheck // older versions set it
	}
	if common.GetStartTime() != nil {
		out.Began = common.GetStartTime().AsTime()
	}
	if out.Took == 0 {
		out.Took = common.GetDuration().AsDuration()
	}
	common.GetResponseFlags().ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		ending := slices.Contains(endings(), string(f.Name()))
		out.Reset, out.Left = out.Reset || ending, out.Left || ending && strings.HasPrefix(string(f.Name()), "downstream_")
		return true
	})
	return out
}

// endings are the flags of a call that has no whole answer of the upstream.
func endings() []string {
	return []string{
		"upstream_request_timeout", "local_reset", "upstream_remote_reset", "upstream_connection_termination",
		"downstream_connection_termination", "stream_idle_timeout", "downstream_protocol_error", "upstream_max_stream_duration_reached",
		"duration_timeout", "upstream_protocol_error", "overload_manager", "downstream_remote_reset",
	}
}

func diffLogged(a, b logged) string { return cmp.Diff(a, b, cmp.AllowUnexported(logged{})) }

// TestAccessLogEntryByTheGeneratedTypes compares the reader with the generated
// types: an entry with everything, then any.
func TestAccessLogEntryByTheGeneratedTypes(t *testing.T) {
	full := read(t, whole())
	if diff := diffLogged(generated(whole()), full); diff != "" {
		t.Errorf("(-generated +got):\n%s", diff)
	}
	want := Outcome{
		Upstream: "a", Caller: "ci", Reason: "allowed", Token: "0a1b2c3d", Tool: "read", Issuer: "https://i", Subject: "me",
		Status: 200, Refusal: "x", Attempts: 2, RequestID: "r-1", Decided: true, Began: time.Unix(1_800_000_000, 5).UTC(),
		Took: 1500 * time.Millisecond, Own: 1250 * time.Microsecond, Sent: 1 << 40, Received: 70_000, Reset: true,
	}
	if diff := cmp.Diff(want, full.Outcome); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	rapid.Check(t, func(t *rapid.T) {
		e := anyEntry(t)
		if diff := diffLogged(generated(e), read(t, e)); diff != "" {
			t.Errorf("(-generated +got):\n%s", diff)
		}
	})
}

// TestEachResponseFlag: which of Envoy's flags is a reset, one at a time.
func TestEachResponseFlag(t *testing.T) {
	fields := (&accesslogv3.ResponseFlags{}).ProtoReflect().Descriptor().Fields()
	resets := 0
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() != protoreflect.BoolKind {
			continue
		}
		e := whole()
		e.CommonProperties.ResponseFlags = &accesslogv3.ResponseFlags{}
		e.GetCommonProperties().GetResponseFlags().ProtoReflect().Set(f, protoreflect.ValueOfBool(true))
		want := slices.Contains(endings(), string(f.Name()))
		if got := read(t, e).Reset; got != want {
			t.Errorf("%s: want %v, got %v", f.Name(), want, got)
		}
		if want {
			resets++
		}
	}
	if resets != len(endings()) {
		t.Errorf("want %d flags by these names, got %d", len(endings()), resets)
	}
}

// TestTimesThatCannotBe are none.
func TestTimesThatCannotBe(t *testing.T) {
	for _, tc := range []struct{ seconds, nanos int64 }{{-1, 0}, {1 << 40, 0}, {0, -1}, {0, 1e9}} {
		e := whole()
		e.CommonProperties.StartTime = &timestamppb.Timestamp{Seconds: tc.seconds, Nanos: int32(tc.nanos)}
		e.CommonProperties.TimeToLastDownstreamTxByte = &durationpb.Duration{Seconds: tc.seconds, Nanos: int32(tc.nanos)}
		e.CommonProperties.Duration = nil
		if got := read(t, e); !got.Began.IsZero() || got.Took != 0 {
			t.Errorf("%v: got %s and %s", tc, got.Began, got.Took)
		}
	}
	for _, own := range []string{"", "-1", "1.5", "1e3", "9999999999999", "1 "} {
		if d := micros([]byte(own)); d != 0 {
			t.Errorf("own %q: got %s", own, d)
		}
	}
}

// anyEntry is an entry with any of the fields that are read, and some that are not.
func anyEntry(t *rapid.T) *accesslogv3.HTTPAccessLogEntry {
	word := func(name string) string { return rapid.StringMatching(`[a-z]{0,6}`).Draw(t, name) }
	yes := func(name string) bool { return rapid.Bool().Draw(t, name) }
	span := func(name string) *durationpb.Duration {
		if yes(name + "?") {
			return nil
		}
		return durationpb.New(time.Duration(rapid.Int64Range(0, 1e13).Draw(t, name)))
	}
	common := &accesslogv3.AccessLogCommon{
		UpstreamCluster: word("cluster"), RouteName: word("route"), Duration: span("duration"), TimeToLastDownstreamTxByte: span("last byte"),
		TimeToLastRxByte: span("other"), UpstreamRequestAttemptCount: rapid.Uint32Range(0, 9).Draw(t, "attempts"),
		AccessLogType:        accesslogv3.AccessLogType(rapid.Int32Range(0, 14).Draw(t, "type")),
		IntermediateLogEntry: yes("intermediate"), //nolint:staticcheck // older versions set it
		Metadata:             &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}},
		ResponseFlags:        &accesslogv3.ResponseFlags{},
	}
	for _, ns := range []string{namespace, "other"} {
		if yes(ns) {
			s, _ := structpb.NewStruct(map[string]any{"number": 1.5})
			for _, name := range []string{"upstream", "caller", "reason", "token", "tool", "issuer", "subject", "own", "session", "mark"} {
				s.Fields[name] = structpb.NewStringValue(rapid.SampledFrom([]string{"", "a", "allowed", "77", "-1"}).Draw(t, name))
			}
			common.Metadata.FilterMetadata[ns] = s
		}
	}
	flags := common.GetResponseFlags().ProtoReflect()
	for i := range flags.Descriptor().Fields().Len() {
		if f := flags.Descriptor().Fields().Get(i); f.Kind() == protoreflect.BoolKind && rapid.IntRange(0, 20).Draw(t, "flag") == 0 {
			flags.Set(f, protoreflect.ValueOfBool(true))
		}
	}
	if yes("started") {
		common.StartTime = timestamppb.New(time.Unix(0, rapid.Int64Range(0, 4e18).Draw(t, "start")))
	}
	e := &accesslogv3.HTTPAccessLogEntry{
		CommonProperties: common,
		Request: &accesslogv3.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod(rapid.Int32Range(0, 9).Draw(t, "method")), RequestId: rapid.String().Draw(t, "id"),
			RequestBodyBytes: uint64(rapid.Uint32().Draw(t, "received")), RequestHeaders: map[string]string{word("header"): word("value"), sessionHeader: word("used")},
		},
		Response: &accesslogv3.HTTPResponseProperties{
			ResponseBodyBytes: uint64(rapid.Uint32().Draw(t, "sent")),
			ResponseHeaders:   map[string]string{reasonHeader: word("refusal"), sessionHeader: word("given")},
		},
	}
	if yes("answered") {
		e.Response.ResponseCode = wrapperspb.UInt32(rapid.Uint32Range(0, 599).Draw(t, "status"))
	}
	return e
}
