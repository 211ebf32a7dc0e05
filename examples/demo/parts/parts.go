// Package parts says what the demo runs: every process with its arguments, its
// files and its addresses. The demo starts these, and a test holds the compose
// file to them, so the two cannot come to differ.
//
// Every address is that of the policy file; only LiteLLM's has no place there.
package parts

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// The files that the parts read, in the directory they run in.
const (
	PolicyFile  = "policy.yaml"
	EnvoyFile   = "envoy.yaml"
	LiteLLMFile = "litellm.yaml"
)

// The upstreams of the policy file.
const (
	Protected = "protected_server"
	Open      = "open_server"
)

// The environment variables with the secrets of the demo.
const (
	ClientSecret = "MCP_OAUTH2_CLIENT_SECRET" //nolint:gosec // the name of a variable: the OAuth client's secret
	MasterKey    = "LITELLM_MASTER_KEY"       // LiteLLM's own, of those who call it
	CallerKey    = "MCP_AUTH_KEY_LITELLM"     // by which Envoy knows LiteLLM
	CallerSum    = "MCP_AUTH_KEY_SHA256"      // the SHA-256 of it, in hex
	AlertSecret  = "MCP_ALERT_SECRET"         //nolint:gosec // the name of a variable: the key that alerts are signed with
)

// LiteLLMPort is where LiteLLM listens on 127.0.0.1.
const LiteLLMPort = 4000

// Part is one process.
type Part struct {
	// Name is its name here, in the compose file, and of its log.
	Name string
	// Title is its name in a sentence.
	Title string
	// Program is the program without its directory.
	Program string
	// Args are its arguments. File names are relative to the directory it runs in.
	Args []string
	// Files are those that it reads there.
	Files []string
	// Secrets are the environment variables with secrets that it gets, Env the
	// others, as NAME=VALUE.
	Secrets, Env []string
	// Address is where it listens, HOST:PORT.
	Address string
	// Ready is a URL that it answers when it is ready, with ReadyStatus.
	Ready       string
	ReadyStatus int
}

// Layout is where everything is.
type Layout struct {
	// Issuer is the authorization server, Admin the base of /status and /metrics,
	// Envoy and LiteLLM the bases of the MCP servers' URLs.
	Issuer, Admin, Envoy, LiteLLM string
	// Alerts is where alerts are posted.
	Alerts string
	// Upstreams are the MCP servers' own URLs, by their names in the policy.
	Upstreams map[string]string
	// Socket is the path where Envoy asks.
	Socket string
}

// NewLayout reads the addresses off the policy. litellm is LiteLLM's port.
func NewLayout(set *policy.Set, litellm int) (*Layout, error) {
	l := &Layout{
		Admin: "http://" + set.Server.Admin, Envoy: set.Envoy.PublicURL,
		LiteLLM:   fmt.Sprintf("http://127.0.0.1:%d", litellm),
		Upstreams: map[string]string{},
	}
	var unix bool
	if l.Socket, unix = strings.CutPrefix(set.Server.Listen, "unix://"); !unix {
		return nil, fmt.Errorf("server.listen: want unix:///PATH, got %q", set.Server.Listen)
	}
	for _, u := range set.Upstreams {
		l.Upstreams[u.Name] = u.URL
		if o := u.Credential.OAuth2; o != nil {
			l.Issuer = strings.TrimSuffix(o.TokenURL, "/token")
		}
	}
	if set.Watch != nil && set.Watch.Alerts.Webhook != nil {
		l.Alerts = set.Watch.Alerts.Webhook.URL
	}
	if l.Alerts == "" || l.Upstreams[Protected] == "" || l.Upstreams[Open] == "" || l.Issuer == "" {
		return nil, fmt.Errorf("the policy: want upstreams %s, with an oauth2 credential, and %s, and a webhook of watch.alerts", Protected, Open)
	}
	return l, nil
}

// Parts lists all parts in the order they start.
func (l *Layout) Parts() []Part {
	return append(append(l.servers(), l.product()...), l.litellm())
}

// servers are what the product stands between.
func (l *Layout) servers() []Part {
	return []Part{
		{
			Name: "auth", Title: "authorization server", Program: "demo-servers",
			Args:    []string{"auth", "--listen", hostport(l.Issuer)},
			Secrets: []string{ClientSecret},
			Address: hostport(l.Issuer), Ready: l.Issuer + "/jwks", ReadyStatus: 200,
		},
		{
			Name: "protected", Title: "protected MCP server", Program: "demo-servers",
			Args:    []string{"protected", "--listen", hostport(l.Upstreams[Protected]), "--issuer", l.Issuer},
			Address: hostport(l.Upstreams[Protected]), Ready: l.Upstreams[Protected], ReadyStatus: 401,
		},
		{
			Name: "open", Title: "open MCP server", Program: "demo-servers",
			Args:    []string{"open", "--listen", hostport(l.Upstreams[Open])},
			Address: hostport(l.Upstreams[Open]), Ready: l.Upstreams[Open], ReadyStatus: 400,
		},
		{
			Name: "alerts", Title: "receiver of alerts", Program: "demo-servers",
			Args:    []string{"alerts", "--listen", hostport(l.Alerts)},
			Secrets: []string{AlertSecret},
			Address: hostport(l.Alerts), Ready: l.Alerts, ReadyStatus: 405,
		},
	}
}

func (l *Layout) product() []Part {
	return []Part{
		{
			Name: "envoy-mcp-auth", Title: "envoy-mcp-auth", Program: "envoy-mcp-auth",
			Args:    []string{"serve", "-c", PolicyFile},
			Files:   []string{PolicyFile},
			Secrets: []string{ClientSecret, CallerSum, AlertSecret},
			Address: hostport(l.Admin), Ready: l.Admin + "/readyz", ReadyStatus: 200,
		},
		{
			Name: "envoy", Title: "Envoy", Program: "envoy",
			Args:    []string{"-c", EnvoyFile, "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"},
			Files:   []string{EnvoyFile},
			Address: hostport(l.Envoy), Ready: l.Envoy, ReadyStatus: 403, // what no upstream has
		},
	}
}

func (l *Layout) litellm() Part {
	host, port, _ := net.SplitHostPort(hostport(l.LiteLLM))
	return Part{
		Name: "litellm", Title: "LiteLLM", Program: "litellm",
		Args:    []string{"--config", LiteLLMFile, "--host", host, "--port", port, "--num_workers", "1"},
		Files:   []string{LiteLLMFile},
		Secrets: []string{MasterKey, CallerKey},
		Env: []string{
			"LITELLM_LOG=INFO", // shows the tools that it found
			// Nothing of these is used here, and each is a download.
			"LITELLM_LOCAL_MODEL_COST_MAP=True",
			"LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS=True",
			"LITELLM_LOCAL_AUTOROUTER_PRESETS=True",
			"LITELLM_LOCAL_POLICY_TEMPLATES=True",
			"LITELLM_LOCAL_BLOG_POSTS=True",
		},
		Address: hostport(l.LiteLLM), Ready: l.LiteLLM + "/health/liveliness", ReadyStatus: 200,
	}
}

func hostport(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	return u.Host
}
