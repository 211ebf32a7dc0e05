package conformance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realproxy"
)

// The environment that makes this test binary the suite's client.
const (
	harnessProgram = "CONFORMANCE_HARNESS_PROGRAM" // the program that is to be in the middle
	harnessClient  = "CONFORMANCE_HARNESS_CLIENT"  // the client that calls through it

	scenarioVariable = "MCP_CONFORMANCE_SCENARIO"
	contextVariable  = "MCP_CONFORMANCE_CONTEXT"
)

// harness puts a proxy before the suite's server, and runs a client that knows
// only the proxy.
func harness(ctx context.Context, server string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "harness")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	scenario := os.Getenv(scenarioVariable)
	credential, env, err := credential(ctx, dir, server, scenario)
	if err != nil {
		return err
	}
	p, err := realproxy.Start(ctx, realproxy.Config{
		Program: os.Getenv(harnessProgram), Dir: dir, Env: env,
		Policy: "callers: {anyone: {any: true}}\ndefaults: {callers: [anyone]}\n" +
			"upstreams: {suite: {url: " + server + ", credential: " + credential + "}}\n",
	})
	if err != nil {
		return err
	}
	defer p.Stop()
	return call(ctx, p.URL+"/suite"+path(server), scenario)
}

// credential is the policy's credential for a scenario, and the environment that
// holds its secret. The suite names the client and its secret; where tokens come
// from, an operator reads in the metadata of the server.
func credential(ctx context.Context, dir, server, scenario string) (text string, env []string, err error) {
	if !strings.HasPrefix(scenario, "auth/") {
		return "none", nil, nil
	}
	var given struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret"`
		PrivateKey   string `json:"private_key_pem"`
		Algorithm    string `json:"signing_algorithm"`
		Workload     string `json:"valid_jwt"`
	}
	if err := json.Unmarshal([]byte(os.Getenv(contextVariable)), &given); err != nil {
		return "", nil, fmt.Errorf("%s: %w", contextVariable, err)
	}
	issuer, err := issuer(ctx, server)
	if err != nil {
		return "", nil, err
	}
	common := fmt.Sprintf("issuer: %s, client_id: %s", issuer, given.ClientID)
	file := filepath.Join(dir, "client.secret")
	switch scenario {
	case "auth/client-credentials-basic":
		return "{oauth2: {" + common + ", client_secret: \"${CLIENT_SECRET}\"}}", []string{"CLIENT_SECRET=" + given.ClientSecret}, nil
	case "auth/client-credentials-jwt":
		return fmt.Sprintf("{oauth2: {%s, private_key: {file: %s}, signing_algorithm: %s}}", common, file, given.Algorithm),
			nil, os.WriteFile(file, []byte(given.PrivateKey), 0o600)
	case "auth/wif-jwt-bearer":
		return fmt.Sprintf("{oauth2: {%s, grant: jwt_bearer, assertion: {file: %s}}}", common, file),
			nil, os.WriteFile(file, []byte(given.Workload), 0o600)
	}
	return "", nil, fmt.Errorf("no credential for the scenario %q: add it to the harness", scenario)
}

// issuer reads the authorization server in the metadata of a server (RFC 9728).
func issuer(ctx context.Context, server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	u.Path = "/.well-known/oauth-protected-resource" + u.Path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var metadata struct {
		Servers []string `json:"authorization_servers"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&metadata); err != nil {
		return "", fmt.Errorf("%s: %w", u, err)
	}
	if len(metadata.Servers) != 1 {
		return "", fmt.Errorf("%s: want one authorization server, got %q", u, metadata.Servers)
	}
	return metadata.Servers[0], nil
}

// call runs the client. It does what it does in a scenario without tokens, and
// is told nothing of any.
func call(ctx context.Context, endpoint, scenario string) error {
	if strings.HasPrefix(scenario, "auth/") {
		scenario = "initialize"
	}
	cmd := exec.CommandContext(ctx, os.Getenv(harnessClient), endpoint)
	cmd.Stderr = os.Stderr
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), scenarioVariable + "=" + scenario}
	if !strings.HasPrefix(os.Getenv(scenarioVariable), "auth/") {
		cmd.Env = append(cmd.Env, contextVariable+"="+os.Getenv(contextVariable))
	}
	if err := cmd.Run(); err != nil {
		return errors.Join(errors.New("the client failed"), err)
	}
	return nil
}

func path(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Path
}
