package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// explanation is what explain shows.
type explanation struct {
	Upstream string `json:"upstream"`
	Caller   string `json:"caller,omitempty"`
	// Verify names the callers of whom the request's token may be, and how it
	// would be verified. What follows holds if it is theirs.
	Verify []string `json:"verify,omitempty"`
	// Tools says which tool rule decided about each call, and Notes what was left out.
	Tools   []toolCall     `json:"tools,omitempty"`
	Notes   []string       `json:"notes,omitempty"`
	Reason  string         `json:"reason"`
	Status  int            `json:"status"`
	Text    string         `json:"text"`
	Set     []headerChange `json:"set,omitempty"`
	Remove  []string       `json:"remove,omitempty"`
	Kept    int            `json:"cookies_kept"`
	Dropped int            `json:"cookies_dropped"`

	as *policy.Caller // whose rights are looked at
}

type headerChange struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Note  string `json:"note,omitempty"`
}

type explainFlags struct {
	source   source
	upstream string
	headers  []string
	uriSAN   string
	dnsSAN   string
	method   string
	body     string
	request  string
	recorded *recorded // what the file of request holds; nil without one
	scopes   []string
	sent     []byte // what the file of body holds; nil without one
	format   format
}

func newExplain(st streams) *cobra.Command {
	f := explainFlags{source: source{st: st}}
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Show the decision for one request, and the exact header changes",
		Long: "Decides about a request, given as headers and body or as a file in which it was recorded, and\n" +
			"shows what would change. Nothing is sent, no token is fetched, and secrets are masked. A caller's\n" +
			"access token is not verified here: the rest is shown as if it were good. The exit status is 0\n" +
			"when the request goes on, else 1.",
		Example: "  envoy-mcp-auth explain -c policy.yaml --upstream protected_server \\\n" +
			"    -H 'Authorization: Bearer mine' -H 'Cookie: session_id=1; tracking=2' --uri-san spiffe://company/litellm\n" +
			"  echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"customer_lookup\"}}' |\n" +
			"    envoy-mcp-auth explain -c policy.yaml --upstream user_aware_server --body - -H \"x-mcp-auth-key: $KEY\"\n" +
			"  envoy-mcp-auth explain -c policy.yaml --upstream user_aware_server --request recorded.http --scope customer:read",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, err := f.source.load()
			if err != nil {
				return err
			}
			if err := f.read(os.Stdin); err != nil {
				return err
			}
			ex, err := explain(set, &f)
			if err != nil {
				return err
			}
			if err := f.format.print(st.out, ex, func() error { return ex.text(st.out) }); err != nil {
				return err
			}
			if ex.Reason != policy.Allowed.String() {
				return errFound
			}
			return nil
		},
	}
	f.source.bind(cmd, false)
	f.format.bind(cmd)
	cmd.Flags().StringVar(&f.upstream, "upstream", "", "name of the upstream")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "a request header, 'Name: value'; may be given many times")
	cmd.Flags().StringVar(&f.body, "body", "", "file with the request's body, or - for the standard input; needed where tool rules decide")
	cmd.Flags().StringVar(&f.request, "request", "", "file with a recorded HTTP/1.1 request, or - for the standard input; headers of -H come on top")
	cmd.Flags().StringVar(&f.method, "method", "", "HTTP method (default POST with a body, else GET)")
	cmd.MarkFlagsMutuallyExclusive("request", "body")
	cmd.MarkFlagsMutuallyExclusive("request", "method")
	cmd.Flags().StringArrayVar(&f.scopes, "scope", nil, "a scope of the caller's access token; may be given many times")
	cmd.Flags().StringVar(&f.uriSAN, "uri-san", "", "URI subject alternative name of the client certificate Envoy verified")
	cmd.Flags().StringVar(&f.dnsSAN, "dns-san", "", "DNS subject alternative name of it")
	return cmd
}

// read reads the file that holds the body, or the whole request.
func (f *explainFlags) read(in io.Reader) (err error) {
	if f.request == "" {
		f.sent, err = readBody(f.body, in)
		return err
	}
	if f.recorded, err = readRequest(f.request, in); err == nil {
		f.method, f.sent = f.recorded.method, f.recorded.body
	}
	return err
}

// explain walks the steps of extproc's decide, less the token.
func explain(set *policy.Set, f *explainFlags) (*explanation, error) {
	if f.upstream == "" {
		return nil, errors.New("no upstream; give its name with --upstream NAME")
	}
	req := policy.Request{Name: f.upstream, URISAN: f.uriSAN, DNSSAN: f.dnsSAN}
	if f.recorded != nil {
		req.Headers = f.recorded.headers
	}
	for i, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			// It is not repeated: it may be a key whose name was forgotten.
			return nil, fmt.Errorf("-H number %d: want 'Name: value'", i+1)
		}
		req.Headers = append(req.Headers, policy.Header{
			Name: strings.ToLower(strings.TrimSpace(name)), Value: []byte(strings.TrimSpace(value)),
		})
	}
	complete(&req, f.method, f.sent)
	ex := &explanation{Upstream: f.upstream}
	ex.decide(set, &req, f)
	return ex, nil
}

func (ex *explanation) decide(set *policy.Set, req *policy.Request, f *explainFlags) {
	up, reason := set.Lookup(req)
	if reason != policy.Allowed {
		ex.end(nil, reason)
		return
	}
	var sc policy.Screening
	if reason = up.Screen(req, &sc); reason != policy.Allowed {
		ex.end(up, reason)
		return
	}
	if reason = ex.authorize(up, req, &sc); reason != policy.Allowed {
		ex.end(up, reason)
		return
	}
	if reason = ex.govern(up, req, f); reason != policy.Allowed {
		ex.end(up, reason)
		return
	}
	cookies := up.Cookies.Filter(nil, sc.Cookies)
	ex.Kept, ex.Dropped = cookies.Kept, cookies.Dropped
	if cookies.Edit == policy.CookieRefuse {
		ex.end(up, policy.BadRequest)
		return
	}
	ex.changes(up, &sc, cookies)
	ex.end(up, policy.Allowed)
}

// authorize finds out who calls. A token decides alone, and to verify it would
// take the keys of its issuer.
func (ex *explanation) authorize(up *policy.Upstream, req *policy.Request, sc *policy.Screening) policy.Reason {
	candidates, token, reason := up.TokenOf(sc)
	if reason != policy.Allowed {
		return reason
	}
	if token == nil {
		caller, reason := up.Authorize(req, sc)
		if reason == policy.Allowed {
			ex.Caller, ex.as = caller.Name, caller
		}
		return reason
	}
	ex.as = candidates[0]
	for _, c := range candidates {
		j := c.JWT
		ex.Verify = append(ex.Verify, fmt.Sprintf("%s if the token in %s is of %s, for %s (%s, %s)",
			c.Name, j.Header, j.Issuer, strings.Join(j.Audiences, " or "), j.Profile, strings.Join(j.Algorithms, " ")))
	}
	return policy.Allowed
}

// end takes the upstream for the status, or nil.
func (ex *explanation) end(up *policy.Upstream, r policy.Reason) {
	ex.Reason, ex.Status, ex.Text = r.String(), up.Status(r), r.Text()
}

func (ex *explanation) changes(up *policy.Upstream, sc *policy.Screening, cookies policy.CookieResult) {
	if o := up.Credential.OAuth2; o != nil {
		note := "access token of client "
		if o.UserBound() {
			note = "access token of the caller alone, by client "
		}
		ex.Set = append(ex.Set, headerChange{"authorization", "Bearer ***", note + cmp.Or(o.ClientID, "none") + " from " + cmp.Or(o.TokenURL, o.Issuer)})
	}
	for _, h := range up.Credential.Headers {
		ex.Set = append(ex.Set, headerChange{h.Name, "***", "from " + h.Value.String()})
	}
	switch cookies.Edit {
	case policy.CookieSet:
		ex.Set = append(ex.Set, headerChange{"cookie", maskCookies(cookies.Value), "values masked"})
	case policy.CookieRemove:
		ex.Remove = append(ex.Remove, "cookie")
	case policy.CookieKeep, policy.CookieRefuse:
	}
	ex.Remove = append(append(ex.Remove, up.Headers.Always()...), sc.Remove...)
}

// maskCookies shows the names that go on: values are the user's.
func maskCookies(value []byte) string {
	pairs := strings.Split(string(value), "; ")
	for i, p := range pairs {
		name, _, _ := strings.Cut(p, "=")
		pairs[i] = name + "=***"
	}
	return strings.Join(pairs, "; ")
}

func (ex *explanation) text(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "upstream  %s\n", ex.Upstream)
	if ex.Caller != "" {
		fmt.Fprintf(&b, "caller    %s\n", ex.Caller)
	}
	for _, v := range ex.Verify {
		fmt.Fprintf(&b, "caller    %s\n", v)
	}
	if len(ex.Verify) > 0 {
		b.WriteString("verify    nothing was sent, so the token was not verified; if it is good:\n")
	}
	ex.toolLines(&b)
	fmt.Fprintf(&b, "decision  %s (%d): %s\n", ex.Reason, ex.Status, ex.Text)
	for _, h := range ex.Set {
		fmt.Fprintf(&b, "set       %s: %s    (%s)\n", h.Name, h.Value, h.Note)
	}
	for _, n := range ex.Remove {
		fmt.Fprintf(&b, "remove    %s\n", n)
	}
	if ex.Kept+ex.Dropped > 0 {
		fmt.Fprintf(&b, "cookies   %d kept, %d dropped\n", ex.Kept, ex.Dropped)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
