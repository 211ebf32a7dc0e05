package e2e_test

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// audienceOfPeople is what the tokens of most callers here are for.
const audienceOfPeople = "https://mcp.company.com"

// scopesOfPeople are those that the policies here demand.
const scopesOfPeople = "mcp.read mcp.call"

// byToken is a policy whose callers have tokens: of an issuer that is asked for
// its keys, of one whose keys' place is written down, and in a header of its own.
const byToken = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: "{{.Listen}}"}
callers:
  people:   {jwt: {issuer: "IDP", audience: "https://mcp.company.com", algorithms: [RS256, ES256], require_scopes: [mcp.read, mcp.call]}}
  admins:   {jwt: {issuer: "IDP", audience: "https://mcp.company.com", require_scopes: [mcp.admin, offline_access]}}
  partners: {jwt: {issuer: "PARTNER", jwks_url: "PARTNER/jwks", audience: "https://mcp.company.com"}}
  guests:   {jwt: {issuer: "IDP", audience: "https://mcp.company.com", header: x-user-token}}
  users:    {jwt: {issuer: "IDP", audience: "IDP"}}
  robot:    {key: {sha256: "{{.KeySum}}"}}
  anyone:   {any: true}
defaults:
  callers: [people]
  credential: {oauth2: {token_url: "{{.TokenURL}}", client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
upstreams:
  alpha:   {url: "{{.URL "alpha"}}", cookies: {allow: [session_id]}}
  admin:   {url: "{{.URL "admin"}}", callers: [admins]}
  fixed:   {url: "{{.URL "fixed"}}", callers: [partners], credential: {header: {x-partner-key: {file: "{{.Dir}}/fixed.secret"}}}}
  both:    {url: "{{.URL "both"}}", callers: [people, partners, robot], credential: none}
  guest:   {url: "{{.URL "guest"}}", callers: [guests, robot], credential: none}
  open:    {url: "{{.URL "open"}}", callers: [anyone], credential: none}
  own:
    url: "{{.URL "own"}}"
    callers: [users]
    credential: {oauth2: {token_url: "{{.TokenURL}}", grant: token_exchange, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
`

// people is a line whose callers have tokens.
type people struct {
	*rig

	idp, partner *tokenstest.Server

	mu    sync.Mutex
	shown map[string]bool // tokens of callers
}

// newPeople prepares a line for a policy, in which IDP and PARTNER stand for the
// two issuers, and runs none of it. What callers show of themselves may be read
// nowhere, at the end of every case.
func newPeople(t *testing.T, text string) *people {
	t.Helper()
	p := &people{shown: map[string]bool{}}
	p.idp = tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		"alpha-client": {Secret: alphaSecret}, "beta-client": {Secret: betaSecret},
	}})
	p.partner = tokenstest.Start(t, tokenstest.Config{})
	text = strings.NewReplacer("IDP", p.idp.Issuer(), "PARTNER", p.partner.Issuer()).Replace(text)
	p.rig = newRig(t, text, func(r *rig) {
		r.issuer = p.idp
		r.facts.TokenURL = p.idp.TokenURL()
	})
	t.Cleanup(p.scan)
	return p
}

// startPeople runs the whole line.
func startPeople(t *testing.T, text string) *people {
	t.Helper()
	p := newPeople(t, text)
	p.proc = p.serve(p.policy, p.facts.Admin)
	p.startEnvoy(p.render())
	return p
}

// mint makes a token of a user of an issuer. extra replaces or adds claims; nil
// takes one out.
func (p *people) mint(issuer *tokenstest.Server, user, scope string, extra map[string]any) string {
	p.t.Helper()
	claims := map[string]any{"scope": scope}
	maps.Copy(claims, extra)
	token, err := issuer.Mint(user, audienceOfPeople, claims)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.show(token)
}

// show notes a token that a caller is about to send.
func (p *people) show(token string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown[token] = true
	return token
}

// scan is A10 and L1 for what callers prove themselves with: no upstream gets any
// part of it that is a credential, and nobody can read it anywhere.
func (p *people) scan() {
	p.mu.Lock()
	tokens := slices.Collect(maps.Keys(p.shown))
	p.mu.Unlock()
	if len(tokens) == 0 {
		p.t.Error("the case has shown no token: the scan says nothing")
	}
	upstreams, channels := map[string][]byte{}, p.channels()
	for name, u := range p.facts.upstreams {
		upstreams[name] = u.raw()
	}
	for _, token := range tokens {
		for _, part := range secretParts(token) {
			for name, raw := range upstreams {
				if bytes.Contains(raw, []byte(part)) {
					p.t.Errorf("A10: a part of a caller's token reached upstream %s", name)
				}
			}
			for where, text := range channels {
				if i := strings.Index(text, part); i >= 0 {
					p.t.Errorf("L1: a part of a caller's token can be read in %s: %q", where, around(text, i))
				}
			}
		}
	}
}

// secretParts are the parts of a token that are long enough to be nothing else:
// payload and signature of a JWT, without which it is none.
func secretParts(token string) []string {
	var out []string
	for i, part := range strings.Split(token, ".") {
		if len(part) >= 20 && (i > 0 || !strings.HasPrefix(part, "ey")) {
			out = append(out, part[:min(len(part), 200)])
		}
	}
	return out
}

// bearer is the header line of a token.
func bearer(token string) string { return "authorization: Bearer " + token }

// at is what callers call an upstream of the policy, and where its metadata is.
func (p *people) at(upstream string) (resource, metadata string) {
	return p.url + "/" + upstream + "/mcp", p.url + "/.well-known/oauth-protected-resource/" + upstream + "/mcp"
}

// challenged fails unless the answer is our refusal with exactly this challenge.
func (p *people) challenged(t *testing.T, what string, got reply, status int, reason, challenge string) {
	t.Helper()
	got.refused(t, status, reason)
	if asks := got.header.Values("Www-Authenticate"); !slices.Equal(asks, []string{challenge}) {
		t.Errorf("%s: want the one challenge\n%s\ngot\n%s", what, challenge, strings.Join(asks, "\n"))
	}
}

// invalidToken is the challenge for a bad token at an upstream.
func (p *people) invalidToken(upstream, scope string) string {
	_, metadata := p.at(upstream)
	ask := `Bearer error="invalid_token", resource_metadata="` + metadata + `"`
	if scope != "" {
		ask += `, scope="` + scope + `"`
	}
	return ask
}

// users is what an upstream is lent, by the subject of its tokens.
func users(arrivals []arrival) []string {
	var out []string
	for _, a := range arrivals {
		out = append(out, claim(strings.TrimPrefix(a.Header.Get("Authorization"), "Bearer "), "sub"))
	}
	return out
}

// whose answers with the subject of the token it was lent.
func whose(w http.ResponseWriter, r *http.Request) {
	//nolint:gosec // no browser reads it
	_, _ = w.Write([]byte(claim(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "sub")))
}
