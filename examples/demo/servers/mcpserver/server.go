package mcpserver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// stateless is the first MCP version without sessions (SEP-2575).
const stateless = "2026-07-28"

// serve answers both ages of MCP at one URL. The SDK's handler is either
// stateful or stateless: the first refuses 2026-07-28, the second gives
// 2025-11-25 no session. The version header is on every request but the first
// of the older age, so it tells them apart. Versions are dates, so they compare
// as strings.
func serve(server *mcp.Server) http.Handler {
	get := func(*http.Request) *mcp.Server { return server }
	sessions := mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{
		// What a client abandons is not kept for ever.
		SessionTimeout: 10 * time.Minute,
	})
	single := mcp.NewStreamableHTTPHandler(get, &mcp.StreamableHTTPOptions{Stateless: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Mcp-Protocol-Version") >= stateless {
			single.ServeHTTP(w, r)
			return
		}
		sessions.ServeHTTP(w, r)
	})
}

// NewOpen returns an MCP server that asks for no credential. Its tool echo
// returns its text.
func NewOpen() http.Handler {
	server := mcp.NewServer(&mcp.Implementation{Name: "open-demo", Version: "1.0.0"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "echo", Description: "Returns the text it gets."}, echo)
	return serve(server)
}

type echoIn struct {
	Text string `json:"text" jsonschema:"what to return"`
}

type echoOut struct {
	Text string `json:"text"`
}

func echo(_ context.Context, _ *mcp.CallToolRequest, in echoIn) (*mcp.CallToolResult, echoOut, error) {
	return nil, echoOut(in), nil
}

// addTools gives the protected server its tools.
func addTools(server *mcp.Server) {
	mcp.AddTool(server, &mcp.Tool{Name: "whoami", Description: "Says who called, and what came with the call."}, whoami)
	mcp.AddTool(server, &mcp.Tool{Name: "add", Description: "Adds two numbers."}, add)
	mcp.AddTool(server, &mcp.Tool{Name: "slow", Description: "Works for 3 s and reports progress each 0.5 s."}, slow)
}

// Whoami is what the tool whoami answers. It holds names and claims, and no
// token and no value of a cookie or header: its answer is shown on screens.
type Whoami struct {
	// Subject, ClientID, Scopes and TokenID are claims of the access token.
	Subject  string   `json:"subject"`
	ClientID string   `json:"client_id"`
	Scopes   []string `json:"scopes"`
	TokenID  string   `json:"token_id"`
	// Cookies are the names of the cookies that came, in order.
	Cookies []string `json:"cookies"`
	// Headers are the lower-case names of all headers that came, sorted.
	Headers []string `json:"headers"`
}

func whoami(_ context.Context, r *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, Whoami, error) {
	out := Whoami{Scopes: []string{}, Cookies: []string{}, Headers: []string{}}
	if r.Extra == nil {
		return nil, out, nil
	}
	if t := r.Extra.TokenInfo; t != nil {
		out.Subject = t.UserID
		out.Scopes = append(out.Scopes, t.Scopes...)
		out.ClientID = text(t, "client_id")
		out.TokenID = text(t, "jti")
	}
	out.Cookies = append(out.Cookies, cookieNames(r.Extra.Header)...)
	out.Headers = append(out.Headers, headerNames(r.Extra.Header)...)
	return nil, out, nil
}

func text(t *auth.TokenInfo, claim string) string {
	s, _ := t.Extra[claim].(string)
	return s
}

type addIn struct {
	A float64 `json:"a"`
	B float64 `json:"b"`
}

type addOut struct {
	Sum float64 `json:"sum"`
}

func add(_ context.Context, _ *mcp.CallToolRequest, in addIn) (*mcp.CallToolResult, addOut, error) {
	return nil, addOut{in.A + in.B}, nil
}

// The tool slow takes slowSteps of slowStep each.
const (
	slowSteps = 6
	slowStep  = 500 * time.Millisecond
)

type slowOut struct {
	Steps int `json:"steps"`
}

func slow(ctx context.Context, r *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, slowOut, error) {
	token := r.Params.GetProgressToken()
	tick := time.NewTicker(slowStep)
	defer tick.Stop()
	for i := range slowSteps {
		select {
		case <-ctx.Done():
			return nil, slowOut{i}, fmt.Errorf("slow stopped after %d of %d steps: %w", i, slowSteps, ctx.Err())
		case <-tick.C:
		}
		if token == nil {
			continue
		}
		// A client that is gone shows in ctx; a lost notification is no reason to stop.
		_ = r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
			ProgressToken: token,
			Progress:      float64(i + 1),
			Total:         slowSteps,
			Message:       fmt.Sprintf("step %d of %d", i+1, slowSteps),
		})
	}
	return nil, slowOut{slowSteps}, nil
}
