package admin

import (
	"fmt"
	"math"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// markup is what a caller may try to have shown.
const markup = `<img src=x onerror=alert(1)>"'><script>alert(2)</script>`

func noon() time.Time { return time.Date(2026, 11, 23, 12, 4, 5, 0, time.UTC) }

// calm is a View in which nothing is wrong.
func calm() *View {
	at := noon()
	v := &View{
		At: at, Version: "v0.6.0", Began: at.Add(-76 * time.Hour),
		Policy: Policy{
			File: "/etc/envoy-mcp-auth/policy.yaml", Hash: "9f2c41d07ab3", Loaded: at.Add(-3 * time.Hour),
			Warnings: []string{"policy.yaml:31: callers.anyone: any admits everybody who reaches Envoy; list callers where you can"},
			Reloads: []Reload{
				{At: at.Add(-3 * time.Hour), Count: 1, Hash: "9f2c41d07ab3"}, {At: at.Add(-26 * time.Hour), Count: 1, Hash: "04be77d1c2aa"},
			},
		},
		Parts: []Part{
			{ID: "audit", Name: "Audit", State: OK, Word: "written", Facts: []Fact{{Name: "File", Value: "/var/log/envoy-mcp-auth/audit.jsonl"}, {Name: "Lines", Value: "48,211"}, {Name: "Last", At: at.Add(-time.Second)}}},
			{ID: "shared-cache", Name: "Shared cache", State: OK, Word: "up", Facts: []Fact{{Name: "Server", Value: "rediss://redis.company.com:6379/0"}, {Name: "Since", At: at.Add(-76 * time.Hour)}}},
			{ID: "issuer-1", Name: "Issuer https://idp.company.com", State: OK, Word: "keys read", Facts: []Fact{{Name: "Keys", Value: "2026-10 RS256, 2026-11 RS256"}, {Name: "Last read", At: at.Add(-7 * time.Minute)}}},
			{ID: "secrets", Name: "Secrets", State: OK, Word: "read", Facts: []Fact{{Name: "In use", Value: "9"}}},
		},
	}
	for i, name := range []string{"anthropic", "calendar", "crm", "docs", "mail", "openai", "tickets"} {
		v.Upstreams = append(v.Upstreams, sample(name, i))
	}
	v.Upstreams[0].Credential, v.Upstreams[0].Token = "header", nil
	v.Upstreams[4].Token = &Token{Tried: true, Ready: true, UserBound: true, Users: 1204, Grant: "token_exchange"}
	v.Upstreams[5].Credential, v.Upstreams[5].Token = "header", nil
	return v
}

func sample(name string, i int) Upstream {
	at := noon()
	u := Upstream{
		Name: name, URL: "https://" + name + "-mcp.company.com/mcp", Cluster: name, Callers: []string{"litellm", "people"}, Credential: "oauth2",
		Rules: i, Proof: "body",
		Token: &Token{
			Endpoint: "https://auth.company.com/oauth2/token", AuthMethod: "client_secret_basic", ClientID: "litellm-proxy", Scopes: []string{"mcp.read"},
			Fingerprint: "3f9a0c11", Tried: true, Ready: true, Expiry: at.Add(time.Duration(4+7*i) * time.Minute), Lifetime: time.Hour,
			Refresh: at.Add(time.Duration(1+6*i) * time.Minute),
		},
		Traffic: &Traffic{Window: 5 * time.Minute, Step: time.Minute, P50: time.Duration(18+9*i) * time.Millisecond, P99: time.Duration(140+70*i) * time.Millisecond},
	}
	for step := range 30 {
		n := uint64(max(0, 60+50*math.Sin(float64(step)/4+float64(i))+float64((step*7+i*3)%13)))
		p := Point{Calls: n, P50: u.Traffic.P50 + time.Duration(step*7%9)*time.Millisecond, P99: u.Traffic.P99 + time.Duration(step*37%90)*time.Millisecond}
		if step >= 25 {
			u.Traffic.Calls += n
		}
		u.Traffic.Points = append(u.Traffic.Points, p)
	}
	return u
}

// troubled is a View in which much is wrong, and callers are hostile.
func troubled() *View {
	v := calm()
	at := v.At
	v.Policy.Error = "policy.yaml:12: upstreams.crm.url: want https for a host that is not loopback, got http://crm; use https, or allow_plaintext: true"
	v.Policy.Reloads = append([]Reload{{At: at.Add(-4 * time.Minute), Count: 47, Hash: "77aa01bc9d3e", Error: v.Policy.Error}}, v.Policy.Reloads...)
	crm, docs, tickets := &v.Upstreams[2], &v.Upstreams[3], &v.Upstreams[6]
	crm.Token = &Token{
		Endpoint: "https://auth.company.com/oauth2/token", Tried: true, Failures: 14, NextTry: at.Add(4 * time.Second),
		LastError: "token endpoint https://auth.company.com/oauth2/token answered 401 invalid_client: the client secret is wrong or has expired; check client_id and client_secret",
	}
	crm.Breaker = &Breaker{State: "open", Since: at.Add(-90 * time.Second), Until: at.Add(12 * time.Second), Why: "22 of 31 calls failed authentication in 5 min"}
	for i := 20; i < 30; i++ {
		crm.Traffic.Points[i].Failed = crm.Traffic.Points[i].Calls * uint64(i-18) / 12
	}
	crm.Traffic.Failed, crm.Traffic.AuthFailed = crm.Traffic.Calls*7/10, crm.Traffic.Calls*7/10
	docs.Token.LastError, docs.Token.Failures = "token endpoint https://auth.company.com/oauth2/token: dial tcp 10.2.0.4:443: connection refused", 2
	docs.Token.NextTry = at.Add(9 * time.Second)
	tickets.Token = &Token{Endpoint: "https://auth.company.com/oauth2/token"}
	v.Alerts = []Alert{{Since: at.Add(-95 * time.Second), Upstream: "crm", Rule: "auth_failures", Text: "22 of 31 calls failed authentication in 5 min, more than 10 %", Response: "The breaker is open: callers get 503 upstream_disabled. One probe each 15 s."}}
	v.Parts[1].State, v.Parts[1].Word, v.Parts[1].Trouble = Warn, "down", "the server does not answer"
	v.Parts[1].Do = "Each replica fetches tokens for itself until it is back, which is noticed within 8 s."
	add := func(ago time.Duration, r policy.Reason, upstream, caller, subject, tool string, n int) {
		v.Refusals = append(v.Refusals, refusals.Refusal{
			First: at.Add(-ago - time.Minute), Last: at.Add(-ago), Count: n, Upstream: upstream, Caller: caller, Subject: subject, Tool: tool,
			Reason: r, Word: r.String(), RequestID: "7c1e8a52-6a0b-4b7e-9d0f-1a2b3c4d5e6f",
		})
	}
	add(2*time.Second, policy.UpstreamDisabled, "crm", "litellm", "", "customer_lookup", 31)
	add(8*time.Second, policy.ToolDenied, "tickets", "people", "alice@company.com", "ticket_delete", 1)
	add(40*time.Second, policy.ScopeMissing, "mail", "people", markup, markup, 3)
	add(3*time.Minute, policy.CallerUnknown, "docs", "", "", "", 1204)
	add(9*time.Minute, policy.NoPolicy, "", "", "", "", 2)
	for i, r := range policy.Reasons()[1:] {
		add(time.Duration(12+i)*time.Minute, r, "calendar", "ci", "", fmt.Sprint("event_", i), 1)
	}
	return v
}

// many is a View of n upstreams.
func many(n int) *View {
	v := calm()
	v.Upstreams = nil
	for i := range n {
		u := sample(fmt.Sprintf("server_%05d", i), i%40)
		if i%997 == 500 {
			u.Token = &Token{Tried: true, LastError: "token endpoint https://auth.company.com/oauth2/token answered 503"}
		}
		v.Upstreams = append(v.Upstreams, u)
	}
	return v
}
