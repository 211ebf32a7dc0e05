package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

const secret = "made-up-secret"

// run starts a command and returns its URL, from its first line, and a function
// that stops it and returns its further lines.
func run(t *testing.T, args ...string) (url string, stop func() []string) {
	t.Helper()
	r, w := io.Pipe()
	env := func(name string) (string, bool) { return secret, name == "MCP_OAUTH2_CLIENT_SECRET" }
	root := newRoot(w, env)
	root.SetArgs(append(args, "--listen", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	ended := make(chan error, 1)
	go func() {
		ended <- root.ExecuteContext(ctx)
		_ = w.Close()
	}()
	in := bufio.NewScanner(r)
	if !in.Scan() {
		t.Fatalf("%v ended: %v", args, <-ended)
	}
	_, url, ok := strings.Cut(in.Text(), ": listening on ")
	if !ok {
		t.Fatalf("want a line with the address, got %q", in.Text())
	}
	var lines []string
	read := make(chan struct{})
	go func() {
		defer close(read)
		for in.Scan() {
			lines = append(lines, in.Text())
		}
	}()
	return url, func() []string {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%v: %v", args, err)
		}
		<-read
		return lines
	}
}

func TestServersTogether(t *testing.T) {
	t.Parallel()
	issuer, stopAuth := run(t, "auth")
	url, stopProtected := run(t, "protected", "--issuer", issuer)
	cc := clientcredentials.Config{
		ClientID: "litellm-proxy", ClientSecret: secret, TokenURL: issuer + "/token", Scopes: []string{"mcp.read"},
		EndpointParams: map[string][]string{"resource": {url}},
	}
	token, err := cc.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if who := whoAmI(t, url, cc.Client(t.Context())); who.ClientID != "litellm-proxy" {
		t.Errorf("want the client of the token, got %+v", who)
	}
	if got := status(t, http.MethodPost, url, token.AccessToken); got == http.StatusUnauthorized {
		t.Errorf("live token: got %d", got)
	}
	if got := status(t, http.MethodPost, issuer+"/control/revoke", ""); got != http.StatusOK {
		t.Fatalf("revoking: want 200, got %d", got)
	}
	if got := status(t, http.MethodPost, url, token.AccessToken); got != http.StatusUnauthorized {
		t.Errorf("revoked token: want 401, got %d", got)
	}
	time.Sleep(200 * time.Millisecond) // the authorization server's lines come a little later
	log := append(stopAuth(), stopProtected()...)
	for _, want := range []string{
		`auth: POST /token resource="` + url + `" scope="mcp.read"`,
		"protected: POST /mcp 200 ", "protected: POST /mcp 401 ",
	} {
		if !slices.ContainsFunc(log, func(l string) bool { return strings.HasPrefix(l, want) }) {
			t.Errorf("want a line %q in\n%s", want, strings.Join(log, "\n"))
		}
	}
	for _, l := range log {
		if strings.Contains(l, secret) || strings.Contains(l, token.AccessToken) {
			t.Errorf("a secret is in the line %q", l)
		}
	}
}

func TestOpenNeedsNothing(t *testing.T) {
	t.Parallel()
	url, stop := run(t, "open")
	if got := status(t, http.MethodGet, url+"?key=k3y", ""); got == http.StatusUnauthorized {
		t.Errorf("got %d", got)
	}
	for _, l := range stop() {
		if strings.Contains(l, "k3y") {
			t.Errorf("the query is in the line %q", l)
		}
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	url, stop := run(t, "open")
	defer stop()
	for _, c := range []struct {
		status, url string
		ready       bool
	}{
		{"400", url, true},
		{"200", url, false},
		{"400", "http://127.0.0.1:1/mcp", false},
	} {
		root := newRoot(io.Discard, func(string) (string, bool) { return "", false })
		root.SetArgs([]string{"ready", c.url, "--status", c.status})
		if err := root.ExecuteContext(t.Context()); (err == nil) != c.ready {
			t.Errorf("ready %s --status %s: want %t, got %v", c.url, c.status, c.ready, err)
		}
	}
}

func TestMistakesSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"auth"}, "MCP_OAUTH2_CLIENT_SECRET is not set"},
		{[]string{"open", "--listen", "127.0.0.1:99999"}, "choose another address with --listen"},
		{[]string{"protected", "--listen", "127.0.0.1:0", "--audience", "mcp"}, `"mcp" is not a URL`},
	} {
		root := newRoot(io.Discard, func(string) (string, bool) { return "", false })
		root.SetArgs(c.args)
		if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: want %q, got %v", c.args, c.want, err)
		}
	}
}

func status(t *testing.T, method, url, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode
}

func whoAmI(t *testing.T, url string, client *http.Client) mcpserver.Whoami {
	t.Helper()
	session, err := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "0"}, nil).
		Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: url, HTTPClient: client}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	res, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "whoami"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	var who mcpserver.Whoami
	if err := json.Unmarshal(b, &who); err != nil {
		t.Fatal(err)
	}
	return who
}
