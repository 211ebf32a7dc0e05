package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// step is one promise. run returns what was seen, and an error if the promise
// did not hold.
type step struct {
	title   string
	litellm bool // makes sense only with LiteLLM
	run     func(*demo, context.Context) (string, error)
}

// steps are the walk.
func steps() []step {
	return []step{
		{"The protected server refuses a call without a token", false, (*demo).bareCall},
		{"LiteLLM found the tools of both servers when it started", true, (*demo).discovery},
		{"A tool call carries the service token and the permitted cookie", false, (*demo).toolCall},
		{"The caller's own keys and its other cookie did not arrive", false, (*demo).nothingElse},
		{"The open server works as it did", false, (*demo).openCall},
		{"A revoked token heals inside the call", false, (*demo).revokedToken},
		{"A client that names a host or brings a token gets nothing by it", false, (*demo).impostor},
		{"Who is not LiteLLM is not lent anything", false, (*demo).stranger},
		{"One server's credential breaks: told, switched off alone, back", false, (*demo).brokenCredential},
		{"envoy-mcp-auth killed: calls are refused, none gets through", false, (*demo).killed},
		{"envoy-mcp-auth back again: calls work again", false, (*demo).backAgain},
	}
}

// walk runs the steps and returns how many failed.
func (d *demo) walk(ctx context.Context) int {
	d.heading("Walk")
	failed := 0
	for i, s := range steps() {
		title := fmt.Sprintf("%2d. %s", i+1, s.title)
		if s.litellm && !d.litellm {
			d.skip(title + ": skipped, LITELLM=0")
			continue
		}
		begin := time.Now()
		within, cancel := context.WithTimeout(ctx, time.Minute)
		seen, err := s.run(d, within)
		cancel()
		if ctx.Err() != nil {
			return failed
		}
		if err != nil {
			failed++
			d.no(title, time.Since(begin))
			d.detail(err.Error())
			if d.casualties() > 0 {
				d.skip("the rest was not tried")
				return failed
			}
			continue
		}
		d.yes(title, time.Since(begin))
		d.detail(seen)
	}
	return failed
}

// casualties names the parts that ended by themselves: often the reason of it all.
func (d *demo) casualties() int {
	n := 0
	for _, name := range d.order {
		if p := d.running[name]; p.ended() && !p.killed {
			n++
			d.detail(fmt.Sprintf("%s is not running any more; the end of %s:\n%s", p.part.Title, d.relative(p.log), p.tail()))
		}
	}
	return n
}

func (d *demo) bareCall(ctx context.Context) (string, error) {
	url := d.layout.Upstreams[parts.Protected]
	got, err := status(ctx, http.MethodPost, url, nil)
	if err != nil || got != http.StatusUnauthorized {
		return "", fmt.Errorf("POST %s: want 401, got %d (%w)", url, got, err)
	}
	return fmt.Sprintf("POST %s: 401", url), nil
}

// discovery reads LiteLLM's log: nobody has called it yet. The listing runs in
// the background, and may end a little after LiteLLM is ready.
func (d *demo) discovery(ctx context.Context) (string, error) {
	line := regexp.MustCompile(`(\d+) tools from server (\w+)\n`)
	for {
		log, err := os.ReadFile(d.log("litellm"))
		if err != nil {
			return "", err
		}
		found := map[string]string{}
		for _, m := range line.FindAllSubmatch(log, -1) {
			found[string(m[2])] = string(m[1])
		}
		if len(found) == 2 {
			if found[parts.Protected] != "3" || found[parts.Open] != "1" {
				return "", fmt.Errorf("want 3 tools and 1, got %v", found)
			}
			return fmt.Sprintf("3 tools of %s, 1 of %s; LiteLLM holds no credential of either", parts.Protected, parts.Open), nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return "", fmt.Errorf("LiteLLM's log names only %v: %w", found, err)
		}
	}
}

func (d *demo) toolCall(ctx context.Context) (string, error) {
	names, err := d.newCaller().tools(ctx, parts.Protected)
	if err != nil {
		return "", err
	}
	if want := []string{"add", "slow", "whoami"}; !slices.Equal(names, want) {
		return "", fmt.Errorf("want tools %v, got %v", want, names)
	}
	who, err := d.newCaller().whoami(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("whoami: client %s, scope %s, cookies %v", who.ClientID, who.Scopes, who.Cookies), lent(who)
}

// lent says whether a call came with the service token and the one cookie.
func lent(who mcpserver.Whoami) error {
	if who.ClientID != "litellm-proxy" || !slices.Equal(who.Scopes, []string{"mcp.read"}) {
		return fmt.Errorf("want client litellm-proxy with mcp.read, got %s with %v", who.ClientID, who.Scopes)
	}
	if !slices.Equal(who.Cookies, []string{"session_id"}) {
		return fmt.Errorf("want the cookie session_id alone, got %v", who.Cookies)
	}
	return nil
}

func (d *demo) nothingElse(ctx context.Context) (string, error) {
	who, err := d.newCaller().whoami(ctx)
	if err != nil {
		return "", err
	}
	if slices.Contains(who.Cookies, "tracking") {
		return "", errors.New("the cookie tracking arrived")
	}
	for _, name := range who.Headers {
		if strings.HasPrefix(name, "x-litellm") || strings.HasPrefix(name, "x-mcp") || name == "x-api-key" {
			return "", fmt.Errorf("the header %s arrived", name)
		}
	}
	return "arrived (authorization is the service token): " + strings.Join(who.Headers, " "), nil
}

func (d *demo) openCall(ctx context.Context) (string, error) {
	var got struct{ Text string }
	if err := d.newCaller().call(ctx, parts.Open, "echo", map[string]any{"text": "hello"}, &got); err != nil {
		return "", err
	}
	if got.Text != "hello" {
		return "", fmt.Errorf("want hello, got %q", got.Text)
	}
	return "echo: hello", nil
}

// revokedToken counts at the authorization server and at the protected server.
func (d *demo) revokedToken(ctx context.Context) (string, error) {
	before, err := d.newCaller().whoami(ctx)
	if err != nil {
		return "", err
	}
	if got, err := status(ctx, http.MethodPost, d.layout.Issuer+"/control/revoke", nil); err != nil || got != http.StatusOK {
		return "", fmt.Errorf("revoking: want 200, got %d (%w)", got, err)
	}
	tokens, refused := d.count("auth", "auth: POST /token "), d.count("protected", "protected: POST /mcp 401 ")
	begin := time.Now()
	after, err := d.newCaller().whoami(ctx)
	took := time.Since(begin)
	if err != nil {
		return "", fmt.Errorf("the call after the revocation failed: %w", err)
	}
	_ = sleep(ctx, 300*time.Millisecond) // the authorization server's lines come a little later
	tokens = d.count("auth", "auth: POST /token ") - tokens
	refused = d.count("protected", "protected: POST /mcp 401 ") - refused
	if tokens != 1 || refused < 1 || before.TokenID == after.TokenID {
		return "", fmt.Errorf("want 1 token request, at least one 401 and another token; got %d, %d, the same token: %t",
			tokens, refused, before.TokenID == after.TokenID)
	}
	return fmt.Sprintf("the server said 401, 1 token request was made, and the call ended well after %s", short(took)), nil
}

// impostor tries what LiteLLM lets every client do: put any header on the way to
// a server.
func (d *demo) impostor(ctx context.Context) (string, error) {
	const evil = "Bearer stolen"
	headers := http.Header{
		"X-Mcp-" + parts.Protected + "-Host":             {"evil.example"},
		"X-Mcp-" + parts.Protected + "-Authorization":    {evil},
		"X-Mcp-" + parts.Protected + "-X-Mcp-Auth-Guard": {parts.Protected},
	}
	if !d.litellm {
		// A header name with _ is refused as it comes, so the plain client sends
		// what LiteLLM would have made of those.
		headers = http.Header{"X-Mcp-Host": {"evil.example"}, "Authorization": {evil}, "X-Mcp-Auth-Guard": {parts.Protected}}
	}
	who, err := d.newCaller().with(headers).whoami(ctx)
	if err != nil {
		return "", err
	}
	if err := lent(who); err != nil {
		return "", err
	}
	return "sent host, authorization and our own mark; same server, same client and same cookie as before", nil
}

// stranger asks Envoy without LiteLLM's key, and for what is not there.
func (d *demo) stranger(ctx context.Context) (string, error) {
	var seen []string
	for _, path := range []string{"/" + parts.Protected + "/mcp", "/" + parts.Protected + "/other", "/nothing/mcp"} {
		got, err := status(ctx, http.MethodPost, d.layout.Envoy+path, http.Header{"Authorization": {"Bearer stolen"}})
		if err != nil || got != http.StatusForbidden {
			return "", fmt.Errorf("POST %s: want 403, got %d (%w)", path, got, err)
		}
		seen = append(seen, path+" 403")
	}
	return strings.Join(seen, ", "), nil
}

// killed asks both ways in, and then the protected server whether it saw anything.
func (d *demo) killed(ctx context.Context) (string, error) {
	arrived := d.count("protected", "protected: ")
	d.running["envoy-mcp-auth"].kill()
	key := http.Header{"X-Mcp-Auth-Key": {d.secrets[parts.CallerKey]}, "Authorization": {"Bearer mine"}, "Cookie": {cookies}}
	got, err := status(ctx, http.MethodPost, d.layout.Envoy+"/"+parts.Protected+"/mcp", key)
	if err != nil || got != http.StatusForbidden && got < 500 {
		return "", fmt.Errorf("want 403 or 5xx, got %d (%w)", got, err)
	}
	if who, err := d.newCaller().whoami(ctx); err == nil {
		return "", fmt.Errorf("a call got through: %+v", who)
	}
	if n := d.count("protected", "protected: ") - arrived; n != 0 {
		return "", fmt.Errorf("%d requests arrived at the protected server", n)
	}
	return fmt.Sprintf("kill -9, then a call: %d; 0 requests arrived at the server", got), nil
}

// backAgain starts it again and calls until that works.
func (d *demo) backAgain(ctx context.Context) (string, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := d.restart(ctx, "envoy-mcp-auth"); err != nil {
		return "", err
	}
	for {
		who, err := d.newCaller().whoami(ctx)
		if err == nil {
			return fmt.Sprintf("first call that worked: %s after the start", short(time.Since(begin))), lent(who)
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			return "", err
		}
	}
}

// count counts the lines of a part's log that begin so.
func (d *demo) count(name, prefix string) int {
	b, err := os.ReadFile(d.log(name))
	if err != nil {
		return 0
	}
	n := 0
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, []byte(prefix)) {
			n++
		}
	}
	return n
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
