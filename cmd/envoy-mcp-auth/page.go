package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// view is what the page shows: the report of /status, put for a person.
func (a *app) view() *admin.View {
	report := a.report()
	v := &admin.View{
		At: time.Now(), Version: report.Version, Began: a.birth, Refusals: report.Refusals,
		Policy: admin.Policy{
			File: report.Policy.File, Hash: report.Policy.Hash, Loaded: report.Policy.LoadedAt, Error: report.Policy.Error,
			Warnings: report.Policy.Warnings, Reloads: report.Policy.Reloads,
		},
	}
	if why, notReady := strings.CutPrefix(report.Ready, "no: "); notReady {
		v.NotReady = why
	}
	for i := range report.Upstreams {
		v.Upstreams = append(v.Upstreams, viewUpstream(&report.Upstreams[i]))
	}
	set := a.reload.set.Load()
	viewWatch(v, &report.Watch, set)
	v.Parts = viewParts(report, set)
	return v
}

func viewUpstream(u *upstreamStatus) admin.Upstream {
	out := admin.Upstream{
		Name: u.Name, URL: u.URL, Cluster: u.Cluster, Callers: u.Callers, Credential: u.Credential, Token: viewToken(u.Token),
		Rules: u.ToolRules, Proof: u.ToolProof,
	}
	if u.Resource != nil {
		out.Findings = u.Resource.Findings()
	}
	return out
}

func viewToken(t *tokens.Status) *admin.Token {
	if t == nil {
		return nil
	}
	out := &admin.Token{
		Endpoint: t.Endpoint, Issuer: t.Issuer, AuthMethod: t.AuthMethod, Grant: t.Grant, ClientID: t.ClientID,
		Scopes: t.Scopes, Resource: t.Resource, Audience: t.Audience, Granted: t.Granted, Fingerprint: t.Fingerprint,
		Expiry: t.Expiry, Refresh: t.Refresh, Lifetime: time.Duration(t.Lifetime * float64(time.Second)),
		Tried: t.Tried, Ready: t.Ready, Stale: t.Stale, UserBound: t.UserBound, Users: int(t.Users),
		Failures: t.Failures, LastError: t.LastError, NextTry: t.NextTry,
	}
	if out.LastError == "" && t.IDP != nil && t.IDP.LastError != "" {
		out.LastError, out.NextTry = "identity provider: "+t.IDP.LastError, t.IDP.NextTry
	}
	return out
}

// viewParts describes what this process stands on besides its upstreams.
func viewParts(r *statusReport, set *policy.Set) []admin.Part {
	var parts []admin.Part
	if r.Audit != nil {
		parts = append(parts, viewAudit(r.Audit))
	}
	if r.XDS != nil {
		parts = append(parts, viewXDS(r.XDS))
	}
	if r.SharedCache != nil {
		parts = append(parts, viewCache(r.SharedCache))
	}
	if r.Limits != nil {
		parts = append(parts, viewLimits(r.Limits))
	}
	for i := range r.Issuers {
		parts = append(parts, viewIssuer(i, &r.Issuers[i]))
	}
	secret := admin.Part{ID: "secrets", Name: "Secrets", State: admin.OK, Word: "read", Facts: []admin.Fact{{Name: "In use", Value: strconv.Itoa(len(secrets.Of(set).Refs))}}}
	for _, t := range r.Secrets {
		state, value := admin.Warn, "not read again, the last good value serves: "+t.Why
		if !t.Held {
			state, value = admin.Bad, "never read: "+t.Why
		}
		secret.State = min(secret.State, state)
		secret.Facts = append(secret.Facts, admin.Fact{Name: t.Secret, Value: value})
	}
	if n := len(r.Secrets); n > 0 {
		secret.Word = "in trouble"
		secret.Trouble = plural(n, "secret") + " cannot be read: " + r.Secrets[0].Secret + ": " + r.Secrets[0].Why
		secret.Do = "Put the file back, or mend the store or its login. It is tried again by itself; a restart before that would not start."
	}
	return append(parts, secret)
}

func viewCache(st *tokens.FleetStatus) admin.Part {
	p := admin.Part{
		ID: "shared-cache", Name: "Shared cache", State: admin.OK, Word: st.State,
		Facts: []admin.Fact{{Name: "Server", Value: st.Server}, {Name: "Since", At: st.Since}},
	}
	switch st.State {
	case "down":
		p.State, p.Trouble = admin.Warn, orDash(st.Reason)
		p.Do = "Each replica fetches tokens for itself until it is back, which is noticed within 8 s."
	case "connecting":
		p.State = admin.Starting
	}
	return p
}

func viewIssuer(i int, st *tokens.IssuerStatus) admin.Part {
	p := admin.Part{
		ID: fmt.Sprintf("issuer-%d", i+1), Name: "Issuer " + st.Issuer, State: admin.OK, Word: "keys read",
		Facts: []admin.Fact{{Name: "Keys", Value: orDash(strings.Join(st.Keys, ", "))}},
	}
	if len(st.Skipped) > 0 {
		p.Facts = append(p.Facts, admin.Fact{Name: "Left out", Value: strings.Join(st.Skipped, ", ")})
	}
	if !st.LastGood.IsZero() {
		p.Facts = append(p.Facts, admin.Fact{Name: "Last read", At: st.LastGood})
	}
	switch {
	case !st.Ready && st.LastError == "":
		p.State, p.Word = admin.Starting, "not read yet"
	case !st.Ready:
		p.State, p.Word, p.Trouble = admin.Bad, "no keys", st.LastError
		p.Do = "No token of this issuer can be verified. Check network, DNS and certificates from here to it."
	case st.LastError != "":
		p.State, p.Word, p.Trouble = admin.Warn, "not refreshed", st.LastError
		p.Do = "The keys that were read serve on. A new signing key of the issuer would not be known."
	}
	return p
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}
