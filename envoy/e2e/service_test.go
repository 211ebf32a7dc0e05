package e2e_test

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// TestE10_ResponseHeadersAsked: where an operator sends us response headers too,
// local replies of Envoy and answers of the upstream pass as they are.
func TestE10_ResponseHeadersAsked(t *testing.T) {
	r := newRig(t, standard)
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy([]byte(strings.ReplaceAll(string(r.render()), "response_header_mode: SKIP", "response_header_mode: SEND")))
	for range 5 {
		if got := r.post("/alpha/mcp", "{}", own("")...); got.status != http.StatusOK || got.body != "ok" {
			t.Errorf("got %v", got)
		}
		r.post("/keyed/mcp", "{}").refused(t, http.StatusForbidden, "caller_unknown")
		r.h1("POST /alpha/mcp HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n")
		r.h1("POST /alpha/mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	}
	if r.proc.gone() {
		t.Error("the program ended")
	}
}

// TestE11_OneService: the listener serves our service and health, and nothing else.
func TestE11_OneService(t *testing.T) {
	r := newRig(t, standard)
	r.proc = r.serve(r.policy, r.facts.Admin)
	conn, err := grpc.NewClient("unix://"+r.facts.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, method := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		"/envoy.service.auth.v3.Authorization/Check", "/grpc.channelz.v1.Channelz/GetServers",
		"/envoy.service.ext_proc.v3.ExternalProcessor/Other", "envoy.service.ext_proc.v3.ExternalProcessor/Process", "/", "//", "/x",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := conn.Invoke(ctx, method, &healthv1.HealthCheckRequest{}, &healthv1.HealthCheckResponse{})
		cancel()
		if code := status.Code(err); code != codes.Unimplemented && code != codes.Internal {
			t.Errorf("%s: want Unimplemented, got %v", method, err)
		}
	}
	if info, err := os.Stat(r.facts.Socket); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("want a socket that others cannot use, got %v, %v", info.Mode(), err)
	}
}

// TestE11_MutualTLS: over TCP with certificates, Envoy gets in and nobody else.
func TestE11_MutualTLS(t *testing.T) {
	var listen string
	r := newRig(t, strings.Replace(standard, "listen: unix://{{.Socket}}",
		"listen: {{.Socket}}\n  tls: {certificate: {{.Dir}}/tls.crt, private_key: {{.Dir}}/tls.key, client_ca: {{.Dir}}/ca.pem}", 1),
		func(r *rig) { listen = free(t); r.facts.Socket = listen })
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	if got := r.post("/alpha/mcp", "{}", own("")...); got.status != http.StatusOK {
		t.Errorf("got %v", got)
	}
	stranger := newPKI(t, t.TempDir()).client("spiffe://x")
	for what, creds := range map[string]credentials.TransportCredentials{
		"plaintext":      insecure.NewCredentials(),
		"no certificate": credentials.NewTLS(r.facts.pki.trust()),
		"a stranger's":   credentials.NewTLS(r.facts.pki.trust(stranger)),
	} {
		conn, err := grpc.NewClient(listen, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		st, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
		if err == nil {
			_, err = st.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: want no connection, got %v", what, err)
		}
		cancel()
		_ = conn.Close()
	}
}

// TestC10_NoURLOfARequest: nothing that a caller names is ever fetched.
func TestC10_NoURLOfARequest(t *testing.T) {
	r := start(t, standard)
	bait := newUpstream(t, "bait", nil)
	r.facts.upstreams["bait"] = bait
	// {"alg":"RS256","jku":"http://…"} would do for a verifier that believes its tokens.
	for _, line := range []string{
		"origin: " + bait.url(), "referer: " + bait.url(), "x-forwarded-host: " + bait.addr, "forwarded: host=" + bait.addr,
		"x-token-url: " + bait.url(), "x-jwks-url: " + bait.url(), "x-mcp-alpha-url: " + bait.url(), "x-original-url: " + bait.url(),
		"authorization: Bearer eyJhbGciOiJSUzI1NiIsImprdSI6Imh0dHA6Ly8xMjcuMC4wLjE6MS8ifQ.e30.x", "link: <" + bait.url() + ">; rel=preload",
		"location: " + bait.url(), "x-accel-redirect: " + bait.url(), "host2: " + bait.addr, "x-envoy-original-dst-host: " + bait.addr,
	} {
		r.both(func(proto string, get func(string, ...string) reply) {
			if got := get("/alpha/mcp", line); got.status != http.StatusOK && got.reason() != "origin_denied" {
				t.Errorf("%s %s: got %v", proto, line, got)
			}
		})
	}
	if n := bait.total(); n != 0 || len(bait.raw()) != 0 {
		t.Errorf("want nothing fetched, got %d requests", n)
	}
}
