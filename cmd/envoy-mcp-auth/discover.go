package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// fetchers bounds the requests that check and token have under way at once.
const fetchers = 16

// discovered is what one authorization server, one upstream, or one issuer of
// callers' tokens says of itself.
type discovered struct {
	// Upstreams are those whose credential is for the server, with this client
	// and method.
	Upstreams []string `json:"upstreams,omitempty"`
	*tokens.Status
	// Resource is what the upstream's own metadata says.
	Resource *tokens.ResourceCheck `json:"resource_check,omitempty"`
	// Callers are those whose tokens Keys verify, which are set together.
	Callers []string             `json:"callers,omitempty"`
	Keys    *tokens.IssuerStatus `json:"keys,omitempty"`
	// Findings are what is wrong, each with what to do.
	Findings []string `json:"findings,omitempty"`
}

// discover asks every issuer of the policy and every upstream with discover:
// true what they say of themselves. No token is asked for, no secret is sent.
func discover(ctx context.Context, set *policy.Set, st streams) ([]discovered, error) {
	store := secrets.New(secrets.Config{Env: st.env, Wait: secretsWait, Log: zerolog.Nop()})
	defer store.Close()
	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now, Log: zerolog.Nop()})
	defer cache.Close()
	verifier := tokens.NewVerifier(tokens.VerifierConfig{Now: time.Now, Log: zerolog.Nop()})
	defer verifier.Close()
	resources := tokens.NewResources(tokens.ResourceConfig{Now: time.Now, Log: zerolog.Nop()})
	var questions []func() discovered
	for _, up := range set.Upstreams {
		o := up.Credential.OAuth2
		if o == nil || o.Issuer == "" && !up.Discover && (o.IDP == nil || o.IDP.Issuer == "") {
			continue
		}
		source, err := cache.Source(up.Name, o)
		if err != nil {
			return nil, err
		}
		questions = append(questions, func() discovered { return discoverOne(ctx, up, source, resources) })
	}
	for _, c := range set.Callers {
		if c.JWT == nil {
			continue
		}
		rule, err := verifier.Rule(c.JWT)
		if err != nil {
			return nil, fmt.Errorf("caller %q: %w", c.Name, err)
		}
		questions = append(questions, func() discovered { return discoverKeys(ctx, c.Name, rule) })
	}
	found := make([]discovered, len(questions))
	each(st.err, "discovered", len(questions), func(i int) { found[i] = questions[i]() })
	return merged(found), nil
}

func discoverOne(ctx context.Context, up *policy.Upstream, source *tokens.Source, resources *tokens.Resources) discovered {
	err := source.Discover(ctx)
	status := source.Status()
	d := discovered{Upstreams: []string{up.Name}, Status: &status}
	if err != nil {
		d.Findings = append(d.Findings, err.Error())
	}
	if up.Discover {
		check := resources.Check(ctx, up)
		d.Resource = &check
		d.Findings = append(d.Findings, check.Findings()...)
	}
	return d
}

// discoverKeys asks the issuer of a caller's tokens for its keys.
func discoverKeys(ctx context.Context, caller string, rule *tokens.Rule) discovered {
	keys, err := rule.Discover(ctx)
	d := discovered{Callers: []string{caller}, Keys: &keys}
	if err != nil {
		d.Findings = append(d.Findings, err.Error())
	}
	return d
}

// merged tells once what many upstreams, or many callers, share.
func merged(all []discovered) []discovered {
	type server struct{ issuer, metadata, endpoint, method, client, idp, keys, findings string }
	var out []discovered
	at := map[server]int{}
	for _, d := range all {
		k := server{findings: strings.Join(d.Findings, "\n")}
		if d.Keys != nil {
			k.keys = d.Keys.Issuer + " " + d.Keys.URL
		}
		if s := d.Status; s != nil {
			k.issuer, k.metadata, k.endpoint, k.method, k.client = s.Issuer, s.Metadata, s.Endpoint, s.AuthMethod, s.ClientID
			if s.IDP != nil {
				k.idp = s.IDP.Issuer + " " + s.IDP.Endpoint
			}
		}
		if i, known := at[k]; known && d.Resource == nil {
			out[i].Upstreams, out[i].Callers = append(out[i].Upstreams, d.Upstreams...), append(out[i].Callers, d.Callers...)
			continue
		}
		if d.Resource == nil {
			at[k] = len(out)
		}
		out = append(out, d)
	}
	return out
}

func (d *discovered) text(b *strings.Builder) {
	if d.Keys != nil {
		fmt.Fprintf(b, "discovered for callers %s\n%s", some(d.Callers), keys(d.Keys))
	} else {
		fmt.Fprintf(b, "discovered for %s\n%s", some(d.Upstreams), server(d.Status))
		if d.IDP != nil {
			b.WriteString(" identity provider\n" + server(d.IDP))
		}
	}
	if d.Resource != nil {
		b.WriteString(resource(d.Resource))
	}
	for _, f := range d.Findings {
		fmt.Fprintf(b, "  differs   %s\n", f)
	}
}

// keys says which keys an issuer publishes.
func keys(st *tokens.IssuerStatus) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  issuer    %s\n", st.Issuer)
	if st.URL != "" {
		fmt.Fprintf(&b, "  keys      %s (%s)\n", st.URL, cmp.Or(some(st.Keys), "none"))
	}
	for _, why := range st.Skipped {
		fmt.Fprintf(&b, "  skipped   %s\n", why)
	}
	return b.String()
}

// resource says what an upstream's metadata says.
func resource(c *tokens.ResourceCheck) string {
	if c.Metadata == "" {
		return ""
	}
	servers := "no authorization server"
	if len(c.Servers) > 0 {
		servers = strings.Join(c.Servers, ", ")
	}
	return fmt.Sprintf("  resource  %s (says %s, of %s)\n", c.Resource, c.Metadata, servers)
}

// some names the first few.
func some(names []string) string {
	const most = 5
	names = slices.Clone(names)
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
