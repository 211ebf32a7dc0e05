package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// The cookies of the user in this story: one that the policy permits, and one
// that it does not know.
const cookies = "session_id=made-up; tracking=made-up"

// caller is an agent: an MCP client that knows one place for all servers.
type caller struct {
	base       string
	viaLiteLLM bool
	header     http.Header
}

// newCaller goes through LiteLLM, or straight to Envoy with the key by which
// Envoy knows LiteLLM. It has a LiteLLM key either way.
func (d *demo) newCaller() caller {
	c := caller{base: d.layout.LiteLLM, viaLiteLLM: true, header: http.Header{
		"Cookie": {cookies}, "X-Litellm-Api-Key": {"Bearer " + d.secrets[parts.MasterKey]},
	}}
	if !d.litellm {
		c.base, c.viaLiteLLM = d.layout.Envoy, false
		c.header.Set("X-Mcp-Auth-Key", d.secrets[parts.CallerKey])
	}
	return c
}

// with returns a caller that sends these headers too.
func (c caller) with(more http.Header) caller {
	c.header = c.header.Clone()
	maps.Copy(c.header, more)
	return c
}

// RoundTrip adds the caller's headers.
func (c caller) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	maps.Copy(r.Header, c.header)
	return http.DefaultTransport.RoundTrip(r)
}

// use opens a session with a server, for as long as f runs.
func (c caller) use(ctx context.Context, server string, f func(*mcp.ClientSession) error) error {
	client := mcp.NewClient(&mcp.Implementation{Name: "demo", Version: "1.0.0"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:   c.base + "/" + server + "/mcp",
		HTTPClient: &http.Client{Transport: c},
		// LiteLLM sends the headers of this stream with its first ping, after
		// 15 s, and the client waits for them.
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	return f(session)
}

// tools lists the names of a server's tools.
func (c caller) tools(ctx context.Context, server string) (names []string, err error) {
	err = c.use(ctx, server, func(s *mcp.ClientSession) error {
		list, err := s.ListTools(ctx, nil)
		if err != nil {
			return err
		}
		for _, tool := range list.Tools {
			// LiteLLM puts the server's name before the tool's.
			names = append(names, tool.Name[strings.LastIndex(tool.Name, "-")+1:])
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// call calls a tool and decodes its answer.
func (c caller) call(ctx context.Context, server, tool string, args map[string]any, answer any) error {
	return c.use(ctx, server, func(s *mcp.ClientSession) error {
		if c.viaLiteLLM {
			tool = server + "-" + tool
		}
		res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
		if err != nil {
			return err
		}
		if len(res.Content) == 0 {
			return errors.New("the answer is empty")
		}
		text, ok := res.Content[0].(*mcp.TextContent)
		if !ok {
			return fmt.Errorf("want text, got %T", res.Content[0])
		}
		if res.IsError {
			return fmt.Errorf("the tool failed: %.200q", text.Text)
		}
		return json.Unmarshal([]byte(text.Text), answer)
	})
}

func (c caller) whoami(ctx context.Context) (who mcpserver.Whoami, err error) {
	err = c.call(ctx, parts.Protected, "whoami", map[string]any{}, &who)
	return who, err
}
