package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// tokenReport is what token shows for one upstream: never the token.
type tokenReport struct {
	tokens.Status
	Took   string         `json:"took"`
	Claims map[string]any `json:"claims,omitempty"`
	Error  string         `json:"error,omitempty"`
	// Note says why no token was asked for.
	Note string `json:"note,omitempty"`
	// Resource is what an upstream with discover: true says of itself.
	Resource *tokens.ResourceCheck `json:"resource_check,omitempty"`
}

func newToken(st streams) *cobra.Command {
	src := source{st: st}
	var only string
	var f format
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Fetch a token once for each upstream and show what came",
		Long: "Asks the authorization servers as the server would, and shows what discovery found, claims, life\n" +
			"and scopes. The token itself is never shown. Where each caller gets a token of its own, none is\n" +
			"asked for: that takes a caller's token. The exit status is 0 when every token came, else 1.",
		Example: "  envoy-mcp-auth token -c policy.yaml --upstream protected_server",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := src.load()
			if err != nil {
				return err
			}
			reports, err := fetchAll(cmd.Context(), set, only, st)
			if err != nil {
				return err
			}
			if err := f.print(st.out, reports, func() error { return printTokens(st.out, reports) }); err != nil {
				return err
			}
			for _, r := range reports {
				if r.Error != "" {
					return errFound
				}
			}
			return nil
		},
	}
	src.bind(cmd, false)
	f.bind(cmd)
	cmd.Flags().StringVar(&only, "upstream", "", "only this upstream")
	return cmd
}

// fetchAll fetches for every upstream that is lent an access token.
func fetchAll(ctx context.Context, set *policy.Set, only string, st streams) ([]tokenReport, error) {
	store := secrets.New(secrets.Config{Env: st.env, Wait: secretsWait, Log: zerolog.Nop()})
	defer store.Close()
	if err := store.Require(secrets.Of(set)); err != nil {
		return nil, err
	}
	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now, Log: zerolog.Nop()})
	defer cache.Close()
	var wanted []*policy.Upstream
	var sources []*tokens.Source
	for _, up := range set.Upstreams {
		if up.Credential.OAuth2 == nil || only != "" && only != up.Name {
			continue
		}
		source, err := cache.Source(up.Name, up.Credential.OAuth2)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", up.Name, err)
		}
		wanted, sources = append(wanted, up), append(sources, source)
	}
	if len(wanted) == 0 {
		if only != "" {
			return nil, fmt.Errorf("no upstream %q with an oauth2 credential in the policy", only)
		}
		return nil, errors.New("no upstream of the policy has an oauth2 credential")
	}
	resources := tokens.NewResources(tokens.ResourceConfig{Now: time.Now, Log: zerolog.Nop()})
	reports := make([]tokenReport, len(wanted))
	each(st.err, "fetched", len(wanted), func(i int) {
		reports[i] = fetch(ctx, wanted[i], sources[i], resources)
	})
	return reports, nil
}

func fetch(ctx context.Context, up *policy.Upstream, source *tokens.Source, resources *tokens.Resources) tokenReport {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start := time.Now()
	var r tokenReport
	var t *tokens.Token
	var err error
	if up.Credential.OAuth2.UserBound() {
		r.Note = "each caller gets a token of its own, in exchange for its own: none is asked for here"
		err = source.Discover(ctx)
	} else {
		t, err = source.Token(ctx)
	}
	r.Status, r.Took = source.Status(), time.Since(start).Round(time.Millisecond).String()
	if up.Discover {
		check := resources.Check(ctx, up)
		r.Resource = &check
	}
	switch {
	case err != nil:
		r.Error = err.Error()
	case t != nil:
		r.Claims = claims(string(t.Authorization()))
	}
	return r
}

// claims reads the payload of a token that is a JWT. It is for a person to look
// at: nothing is decided by it (RFC 9068 §6).
func claims(authorization string) map[string]any {
	parts := strings.Split(authorization, ".")
	if len(parts) != 3 {
		return nil
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var m map[string]any
	if json.Unmarshal(b, &m) != nil {
		return nil
	}
	return m
}

// server says who was asked, and what was found out about it.
func server(r *tokens.Status) string {
	var b strings.Builder
	if r.Issuer != "" {
		fmt.Fprintf(&b, "  issuer    %s\n", r.Issuer)
	}
	if r.Metadata != "" {
		offered := "no methods"
		if len(r.Offered) > 0 {
			offered = strings.Join(r.Offered, ", ")
		}
		fmt.Fprintf(&b, "  metadata  %s (offers %s)\n", r.Metadata, offered)
	}
	if r.Endpoint == "" {
		return b.String()
	}
	how := []string{r.AuthMethod}
	if r.Grant != "" {
		how = append(how, "grant "+r.Grant)
	}
	if r.ClientID != "" {
		how = append(how, "client "+r.ClientID)
	}
	fmt.Fprintf(&b, "  endpoint  %s (%s)\n", r.Endpoint, strings.Join(how, ", "))
	return b.String()
}

func printTokens(w io.Writer, reports []tokenReport) error {
	var b strings.Builder
	for i := range reports {
		reports[i].text(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *tokenReport) text(b *strings.Builder) {
	switch {
	case r.Error != "":
		fmt.Fprintf(b, "%s  FAILED in %s\n", r.Upstream, r.Took)
	case r.Note != "":
		fmt.Fprintf(b, "%s  not fetched\n  note      %s\n", r.Upstream, r.Note)
	default:
		fmt.Fprintf(b, "%s  ok in %s\n", r.Upstream, r.Took)
	}
	b.WriteString(server(&r.Status))
	fmt.Fprintf(b, "  requests  %s\n", requested(&r.Status))
	if r.Resource != nil {
		b.WriteString(resource(r.Resource))
		for _, f := range r.Resource.Findings() {
			fmt.Fprintf(b, "  differs   %s\n", f)
		}
	}
	if r.Error != "" {
		fmt.Fprintf(b, "  error     %s\n", r.Error)
		return
	}
	if r.Expiry.IsZero() {
		return
	}
	if r.Granted != "" {
		fmt.Fprintf(b, "  scope     %s\n", r.Granted)
	}
	life := time.Duration(r.Lifetime * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(b, "  expires   %s, %s after it came, refreshed from %s\n", r.Expiry.Format(time.RFC3339), life, r.Refresh.Format(time.RFC3339))
	for _, n := range slices.Sorted(maps.Keys(r.Claims)) {
		v, _ := json.Marshal(r.Claims[n])
		fmt.Fprintf(b, "  claim     %s = %s\n", n, v)
	}
}

// requested says what is asked for.
func requested(r *tokens.Status) string {
	var parts []string
	if len(r.Scopes) > 0 {
		parts = append(parts, "scope "+strings.Join(r.Scopes, " "))
	}
	if r.Resource != "" {
		parts = append(parts, "resource "+r.Resource)
	}
	if r.Audience != "" {
		parts = append(parts, "audience "+r.Audience)
	}
	if len(parts) == 0 {
		return "a token, and nothing of it"
	}
	return strings.Join(parts, ", ")
}
