package main

import (
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// statusReport is /status. Nothing in it is secret.
type statusReport struct {
	Version string       `json:"version"`
	Ready   string       `json:"ready"`
	Policy  policyStatus `json:"policy"`
	// SharedCache is missing without one.
	SharedCache *tokens.FleetStatus `json:"shared_cache,omitempty"`
	// Audit is missing when nothing is recorded.
	Audit *audit.Status `json:"audit,omitempty"`
	// XDS is missing unless Envoys are served their configuration.
	XDS *envoy.XDSStatus `json:"xds,omitempty"`
	// Limits is missing when nothing is limited.
	Limits    *limits.Status   `json:"limits,omitempty"`
	Upstreams []upstreamStatus `json:"upstreams"`
	// Issuers are those whose tokens prove callers.
	Issuers []tokens.IssuerStatus `json:"issuers,omitempty"`
	// Watch is how the calls of each upstream fare.
	Watch watch.Status `json:"watch"`
	// Secrets are those that cannot be read now.
	Secrets []secrets.Trouble `json:"secrets_in_trouble,omitempty"`
	// Refusals are the latest refused calls, newest first.
	Refusals []refusals.Refusal `json:"recent_refusals"`
}

type policyStatus struct {
	File string `json:"file"`
	reloadState
	Warnings []string `json:"warnings,omitempty"`
}

type upstreamStatus struct {
	Name       string         `json:"name"`
	URL        string         `json:"url"`
	Cluster    string         `json:"cluster"`
	Callers    []string       `json:"callers"`
	Credential string         `json:"credential"`
	Token      *tokens.Status `json:"token,omitempty"`
	// ToolRules counts the rules for tools, and ToolProof is what proves a tool.
	ToolRules int    `json:"tool_rules,omitzero"`
	ToolProof string `json:"tool_proof,omitempty"`
	// Resource is what an upstream with discover: true says of itself.
	Resource *tokens.ResourceCheck `json:"resource_check,omitempty"`
}

func (a *app) status() any { return a.report() }

func (a *app) report() *statusReport {
	set := a.reload.set.Load()
	report := &statusReport{
		Version: versionString(), Ready: "yes", Policy: policyStatus{File: a.reload.src.file, reloadState: *a.reload.state.Load()},
		Issuers: a.callers.Status(), Secrets: a.secrets.Troubles(), Refusals: a.refusals.Recent(), Watch: a.watch.Status(),
	}
	if err := a.ready(); err != nil {
		report.Ready = "no: " + err.Error()
	}
	if f := a.fleet.Load(); f != nil {
		st := f.Status()
		report.SharedCache = &st
	}
	if set.Audit != nil {
		st := a.audit.Status()
		report.Audit = &st
	}
	if a.xds != nil {
		st := a.xds.Status()
		report.XDS = &st
	}
	report.Limits = a.limits.Status()
	for _, w := range set.Warnings {
		report.Policy.Warnings = append(report.Policy.Warnings, w.String())
	}
	held := map[string]tokens.Status{}
	for _, s := range a.reload.sources() {
		st := s.Status()
		held[st.Upstream] = st
	}
	for _, up := range set.Upstreams {
		u := upstreamStatus{Name: up.Name, URL: up.URL, Cluster: up.Cluster, Credential: credentialKind(up)}
		for _, c := range up.Callers {
			u.Callers = append(u.Callers, c.Name)
		}
		if st, ok := held[up.Name]; ok {
			u.Token = &st
		}
		if up.Tools != nil {
			u.ToolRules, u.ToolProof = len(up.Tools.Rules), string(up.Tools.Proof)
		}
		u.Resource = a.resources.Of(up.Name)
		report.Upstreams = append(report.Upstreams, u)
	}
	return report
}

func credentialKind(up *policy.Upstream) string {
	switch {
	case up.Credential.OAuth2 != nil:
		return "oauth2"
	case len(up.Credential.Headers) > 0:
		return "header"
	}
	return "none"
}

// expiries tells the metrics when tokens expire.
func (a *app) expiries(yield func(upstream string, expiry time.Time)) {
	for _, s := range a.reload.sources() {
		if t := s.Cached(); t != nil {
			yield(s.Name(), t.Expiry())
		}
	}
}

// stale tells the metrics which upstreams are lent an expired token.
func (a *app) stale(yield func(upstream string)) {
	for _, s := range a.reload.sources() {
		if s.Stale() {
			yield(s.Name())
		}
	}
}
