package conformance_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realproxy"
)

// document is what the runs are written to.
const document = "../../../docs/conformance.md"

// TestConformance runs everything, and holds the committed document against it.
func TestConformance(t *testing.T) {
	p := everything(t)
	var doc strings.Builder
	doc.WriteString(`<!-- Written by go test ./envoy/e2e/conformance -update; make conformance checks it. -->
# MCP conformance

The MCP conformance suite, run without a proxy and through Envoy and this program, and compared check by check.

## The suite as client

Against the Go SDK's conformance server: all scenarios that the revision requires, and the unscored ones that the suite runs with them.

| revision | checks | pass directly | pass through the proxy | different |
| --- | --- | --- | --- | --- |
`)
	for _, revision := range []string{"2025-11-25", "2026-07-28"} {
		t.Run("server "+revision, func(t *testing.T) { doc.WriteString(server(t, p, revision)) })
	}
	doc.WriteString(`
What does not pass directly either is not scored: the extension for tasks, which that server does not have, and notes of the suite.

## The suite as server

With the Go SDK's conformance client. In the scenarios of OAuth the suite is the authorization server too; the client knows no token,
and the proxy gets it.

| scenario | revision | checks | pass directly | pass through the proxy |
| --- | --- | --- | --- | --- |
`)
	for _, c := range clientScenarios() {
		t.Run(c.name+" "+c.revision, func(t *testing.T) { doc.WriteString(client(t, p, c)) })
	}
	if t.Failed() {
		return
	}
	if *update {
		if err := os.WriteFile(document, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(doc.String(), string(committed)); d != "" {
		t.Errorf("docs/conformance.md is not what the runs say (- is what they say): go test ./envoy/e2e/conformance -update writes it\n%s", d)
	}
}

// server judges the SDK's server directly and through the proxy. The first
// revision has sessions, so its server keeps them.
func server(t *testing.T, p parts, revision string) string {
	t.Helper()
	address := port(t)
	p.serve(t, address, revision >= "2026")
	listen := port(t)
	// The suite calls with the origin of what it calls, and expects it to be let in.
	line, err := realproxy.Start(t.Context(), realproxy.Config{
		Program: p.proxy, Dir: t.TempDir(), Listen: listen,
		Policy: fmt.Sprintf(`callers: {anyone: {any: true}}
upstreams: {everything: {url: "http://%s/mcp", credential: none, callers: [anyone], origins: {allow: ["http://%s"]}}}
`, address, listen),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer line.Stop()
	direct, _ := p.run(t, nil, "server", "--url", "http://"+address+"/mcp", "--requirements", revision)
	through, said := p.run(t, nil, "server", "--url", line.URL+"/everything/mcp", "--requirements", revision)
	changed := differ(direct, through)
	for _, line := range changed {
		t.Error(line)
	}
	if direct.passed() < 80 {
		t.Errorf("want at least 80 checks to pass directly, got %d", direct.passed())
	}
	if t.Failed() {
		t.Log(said[max(0, len(said)-6000):])
	}
	return fmt.Sprintf("| %s | %d | %d | %d | %d |\n", revision, len(direct), direct.passed(), through.passed(), len(changed))
}

// clientScenario is a scenario of the suite as server.
type clientScenario struct{ name, revision string }

// clientScenarios are those that do without a person at a browser.
func clientScenarios() []clientScenario {
	const sessions, stateless = "2025-11-25", "2026-07-28"
	return []clientScenario{
		{"auth/client-credentials-basic", sessions},
		{"auth/client-credentials-basic", stateless},
		{"auth/client-credentials-jwt", sessions},
		{"auth/client-credentials-jwt", stateless},
		{"auth/wif-jwt-bearer", sessions},
		{"auth/wif-jwt-bearer", stateless},
		{"initialize", sessions},
		{"tools_call", sessions},
		{"tools_call", stateless},
		{"sse-retry", sessions},
		{"elicitation-sep1034-client-defaults", sessions},
		{"json-schema-2020-12-preservation", sessions},
		{"json-schema-2020-12-preservation", stateless},
		{"json-schema-ref-no-deref", stateless},
		{"request-metadata", stateless},
		{"http-standard-headers", stateless},
		{"http-custom-headers", stateless},
		{"http-invalid-tool-headers", stateless},
		{"sep-2322-client-request-state", stateless},
	}
}

// client judges the SDK's client as it is and with the proxy before it. The
// client as it is has no token to show, so it cannot be judged where one is asked for.
func client(t *testing.T, p parts, c clientScenario) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"client", "--scenario", c.name, "--spec-version", c.revision, "--force", "--command"}
	env := []string{harnessProgram + "=" + p.proxy, harnessClient + "=" + p.client, "ENVOY=" + p.envoy}
	through, said := p.run(t, env, append(args, self)...)
	for name, status := range through {
		if status == "FAILURE" {
			t.Errorf("%s: %s", name, status)
		}
	}
	if through.passed() == 0 {
		t.Error("want a check that passes, got none")
	}
	beside := "–"
	if !strings.HasPrefix(c.name, "auth/") {
		direct, _ := p.run(t, nil, append(args, p.client)...)
		for _, line := range differ(direct, through) {
			t.Error(line)
		}
		beside = fmt.Sprint(direct.passed())
	}
	if t.Failed() {
		t.Log(said[max(0, len(said)-6000):])
	}
	return fmt.Sprintf("| `%s` | %s | %d | %s | %d |\n", c.name, c.revision, len(through), beside, through.passed())
}

func port(t *testing.T) string {
	t.Helper()
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}
