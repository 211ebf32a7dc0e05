package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
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
}

func newToken(st streams) *cobra.Command {
	src := source{st: st}
	var only string
	var f format
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Fetch a token once for each upstream and show what came",
		Long: "Asks the authorization servers as the server would, and shows claims, life and scopes. The\n" +
			"token itself is never shown. The exit status is 0 when every token came, else 1.",
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
	reports := []tokenReport{}
	for _, up := range set.Upstreams {
		if up.Credential.OAuth2 == nil || only != "" && only != up.Name {
			continue
		}
		source, err := cache.Source(up.Name, up.Credential.OAuth2)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", up.Name, err)
		}
		reports = append(reports, fetch(ctx, source))
	}
	if len(reports) == 0 {
		if only != "" {
			return nil, fmt.Errorf("no upstream %q with an oauth2 credential in the policy", only)
		}
		return nil, errors.New("no upstream of the policy has an oauth2 credential")
	}
	return reports, nil
}

func fetch(ctx context.Context, source *tokens.Source) tokenReport {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	start := time.Now()
	t, err := source.Token(ctx)
	r := tokenReport{Status: source.Status(), Took: time.Since(start).Round(time.Millisecond).String()}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.Claims = claims(string(t.Authorization()))
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
func server(r *tokenReport) string {
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
		r := &reports[i]
		mark := "ok"
		if r.Error != "" {
			mark = "FAILED"
		}
		fmt.Fprintf(&b, "%s  %s in %s\n", r.Upstream, mark, r.Took)
		b.WriteString(server(r))
		if r.Error != "" {
			fmt.Fprintf(&b, "  error     %s\n", r.Error)
			continue
		}
		fmt.Fprintf(&b, "  expires   %s, refreshed from %s\n", r.Expiry.Format(time.RFC3339), r.Refresh.Format(time.RFC3339))
		names := make([]string, 0, len(r.Claims))
		for n := range r.Claims {
			names = append(names, n)
		}
		sort.Strings(names)
		for _, n := range names {
			v, _ := json.Marshal(r.Claims[n])
			fmt.Fprintf(&b, "  claim     %s = %s\n", n, v)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
