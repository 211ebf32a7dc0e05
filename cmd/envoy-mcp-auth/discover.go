package main

import (
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

// discovered is what one authorization server, or one upstream, says of itself.
type discovered struct {
	// Upstreams are those whose credential is for the server, with this client
	// and method.
	Upstreams []string `json:"upstreams"`
	tokens.Status
	// Resource is what the upstream's own metadata says.
	Resource *tokens.ResourceCheck `json:"resource_check,omitempty"`
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
	resources := tokens.NewResources(tokens.ResourceConfig{Now: time.Now, Log: zerolog.Nop()})
	var asked []*policy.Upstream
	for _, up := range set.Upstreams {
		if o := up.Credential.OAuth2; o != nil && (o.Issuer != "" || up.Discover) {
			asked = append(asked, up)
		}
	}
	found := make([]discovered, len(asked))
	sources := make([]*tokens.Source, len(asked))
	for i, up := range asked {
		var err error
		if sources[i], err = cache.Source(up.Name, up.Credential.OAuth2); err != nil {
			return nil, err
		}
	}
	each(st.err, "discovered", len(asked), func(i int) {
		found[i] = discoverOne(ctx, asked[i], sources[i], resources)
	})
	return merged(found), nil
}

func discoverOne(ctx context.Context, up *policy.Upstream, source *tokens.Source, resources *tokens.Resources) discovered {
	err := source.Discover(ctx)
	d := discovered{Upstreams: []string{up.Name}, Status: source.Status()}
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

// merged tells once what many upstreams share.
func merged(all []discovered) []discovered {
	type server struct{ issuer, metadata, endpoint, method, client, findings string }
	var out []discovered
	at := map[server]int{}
	for _, d := range all {
		k := server{d.Issuer, d.Metadata, d.Endpoint, d.AuthMethod, d.ClientID, strings.Join(d.Findings, "\n")}
		if i, known := at[k]; known && d.Resource == nil {
			out[i].Upstreams = append(out[i].Upstreams, d.Upstreams...)
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
	fmt.Fprintf(b, "discovered for %s\n%s", some(d.Upstreams), server(&d.Status))
	if d.Resource != nil {
		b.WriteString(resource(d.Resource))
	}
	for _, f := range d.Findings {
		fmt.Fprintf(b, "  differs   %s\n", f)
	}
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
