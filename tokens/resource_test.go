package tokens

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// resourceServer is an upstream that serves documents by path, and counts what
// it is asked.
type resourceServer struct {
	*httptest.Server
	documents map[string]string
	asked     []string
}

func newResourceServer(t *testing.T, documents func(url string) map[string]string) *resourceServer {
	t.Helper()
	s := &resourceServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked = append(s.asked, r.URL.Path)
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Error("a credential was sent to a public document")
		}
		switch doc, ok := s.documents[r.URL.Path]; {
		case !ok:
			http.NotFound(w, r)
		case strings.HasPrefix(doc, "redirect "):
			http.Redirect(w, r, strings.TrimPrefix(doc, "redirect "), http.StatusFound)
		case doc == "broken":
			http.Error(w, "no", http.StatusInternalServerError)
		default:
			_, _ = w.Write([]byte(doc))
		}
	}))
	t.Cleanup(s.Close)
	s.documents = documents(s.URL)
	return s
}

const wellKnown = "/.well-known/oauth-protected-resource"

func resourceUpstream(url string, o *policy.OAuth2) *policy.Upstream {
	return &policy.Upstream{Name: "tools", URL: url, Resource: url, Discover: true, Credential: policy.Credential{OAuth2: o}}
}

// U2, U4: where the document is looked for, and what is made of it.
func TestU4_ResourceMetadataIsComparedNotObeyed(t *testing.T) {
	t.Parallel()
	const issuer = "https://auth.example"
	at := func(path, doc string) func(string) map[string]string {
		return func(url string) map[string]string {
			return map[string]string{path: strings.ReplaceAll(doc, "URL", url)}
		}
	}
	agrees := `{"resource": "URL/mcp", "authorization_servers": ["https://other.example", "https://auth.example"]}`
	for _, c := range []struct {
		title      string
		documents  func(string) map[string]string
		o          policy.OAuth2
		code       string
		difference string // "" for none
		asked      int
	}{
		{"U2 path form", at(wellKnown+"/mcp", agrees), policy.OAuth2{Issuer: issuer}, "", "", 1},
		{"U2 root form", at(wellKnown, agrees), policy.OAuth2{Issuer: issuer}, "", "", 2},
		{"U2 none", at("/x", ""), policy.OAuth2{Issuer: issuer}, "no_metadata", "", 2},
		{"U2 another failure ends it", func(string) map[string]string {
			return map[string]string{wellKnown + "/mcp": "broken", wellKnown: agrees}
		}, policy.OAuth2{Issuer: issuer}, "http_500", "", 1},
		{"no redirects", at(wellKnown+"/mcp", "redirect URL"+wellKnown), policy.OAuth2{Issuer: issuer}, "redirect_refused", "", 1},
		{"U4 another server", at(wellKnown+"/mcp", `{"resource": "URL/mcp", "authorization_servers": ["https://evil.example"]}`), policy.OAuth2{Issuer: issuer}, "", `"https://evil.example"`, 1},
		{"U3 nearly the issuer", at(wellKnown+"/mcp", `{"resource": "URL/mcp", "authorization_servers": ["https://auth.example/"]}`), policy.OAuth2{Issuer: issuer}, "", "to which alone the credential goes", 1},
		{"U1 another resource", at(wellKnown+"/mcp", `{"resource": "URL/mcp/", "authorization_servers": ["https://auth.example"]}`), policy.OAuth2{Issuer: issuer}, "", "set credential.oauth2.resource", 1},
		{"no servers named", at(wellKnown+"/mcp", `{"resource": "URL/mcp"}`), policy.OAuth2{Issuer: issuer}, "", "", 1},
		{"a token_url names no issuer", at(wellKnown+"/mcp", agrees), policy.OAuth2{TokenURL: issuer + "/token"}, "", "", 1},
		{"no resource named", at(wellKnown+"/mcp", `{}`), policy.OAuth2{Issuer: issuer}, "metadata", "", 1},
		{"no JSON", at(wellKnown+"/mcp", "<html>"), policy.OAuth2{Issuer: issuer}, "not_json", "", 1},
		{"a member twice", at(wellKnown+"/mcp", `{"resource": "a", "resource": "b"}`), policy.OAuth2{Issuer: issuer}, "duplicate_member", "", 1},
		{"servers that are none", at(wellKnown+"/mcp", `{"resource": "URL/mcp", "authorization_servers": "https://auth.example"}`), policy.OAuth2{Issuer: issuer}, "metadata", "", 1},
		{"too big", at(wellKnown+"/mcp", `{"resource": "`+strings.Repeat("a", maxAnswer)+`"}`), policy.OAuth2{Issuer: issuer}, "too_big", "", 1},
	} {
		t.Run(c.title, func(t *testing.T) {
			t.Parallel()
			s := newResourceServer(t, c.documents)
			c.o.Resource = s.URL + "/mcp"
			now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			got := NewResources(ResourceConfig{Now: func() time.Time { return now }}).Check(t.Context(), resourceUpstream(s.URL+"/mcp", &c.o))
			if got.Code != c.code || (got.Error == "") != (c.code == "") || !got.Checked.Equal(now) {
				t.Errorf("want code %q, got %+v", c.code, got)
			}
			differs := strings.Join(got.Differences, "; ")
			if (differs == "") != (c.difference == "") || !strings.Contains(differs, c.difference) {
				t.Errorf("want a difference with %q, got %q", c.difference, differs)
			}
			if wants := c.code != "" || c.difference != ""; wants != (len(got.Findings()) > 0) {
				t.Errorf("want findings: %v, got %q", wants, got.Findings())
			}
			if len(s.asked) != c.asked {
				t.Errorf("want %d requests, got %q", c.asked, s.asked)
			}
		})
	}
}

func TestU2_ResourceURLs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string][]string{
		"https://a.example":          {"https://a.example" + wellKnown},
		"https://a.example/":         {"https://a.example" + wellKnown},
		"https://a.example:8443/x/y": {"https://a.example:8443" + wellKnown + "/x/y", "https://a.example:8443" + wellKnown},
		"https://a.example/mcp/":     {"https://a.example" + wellKnown + "/mcp", "https://a.example" + wellKnown},
		"https://a.example/a%2Fb":    {"https://a.example" + wellKnown + "/a%2Fb", "https://a.example" + wellKnown},
	} {
		if diff := cmp.Diff(want, resourceURLs(in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

// An upstream that cannot be reached, or whose authorities cannot be read, is an
// error and not an agreement.
func TestResourceOfAnUpstreamThatIsDown(t *testing.T) {
	t.Parallel()
	r := NewResources(ResourceConfig{Now: time.Now})
	up := resourceUpstream("http://127.0.0.1:1/mcp", &policy.OAuth2{})
	if c := r.Check(t.Context(), up); c.Code != "connection_refused" {
		t.Errorf("want connection_refused, got %+v", c)
	}
	up.CA = "/nowhere.pem"
	if c := r.Check(t.Context(), up); c.Code != "ca_unreadable" {
		t.Errorf("want ca_unreadable, got %+v", c)
	}
}

// roundTripper is a transport of one function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestResourceWatch: in the background, hourly, and said once.
func TestResourceWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var says atomic.Value
		says.Store("https://other.example")
		var log bytes.Buffer
		r := NewResources(ResourceConfig{
			Now: time.Now, Log: zerolog.New(&log), Dice: func() float64 { return 0.5 },
			Transport: roundTripper(func(*http.Request) (*http.Response, error) {
				asked.Add(1)
				w := httptest.NewRecorder()
				if says.Load() == "" {
					w.WriteHeader(http.StatusBadGateway)
				}
				_, _ = fmt.Fprintf(w, `{"resource": "https://a.example/mcp", "authorization_servers": [%q]}`, says.Load())
				return w.Result(), nil
			}),
		})
		up := resourceUpstream("https://a.example/mcp", &policy.OAuth2{Issuer: "https://auth.example", Resource: "https://a.example/mcp"})
		quiet := *up
		quiet.Name, quiet.Discover = "quiet", false
		var in atomic.Pointer[[]*policy.Upstream]
		in.Store(&[]*policy.Upstream{up, &quiet})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Watch(ctx, func() []*policy.Upstream { return *in.Load() }) }()
		step := func(d time.Duration, requests int64, lines int, findings int) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if asked.Load() != requests || strings.Count(log.String(), "\n") != lines || len(r.Of("tools").Findings()) != findings {
				t.Errorf("want %d requests, %d lines, %d findings; got %d, %+v and\n%s", requests, lines, findings, asked.Load(), r.Of("tools"), log.String())
			}
		}
		step(time.Second, 1, 1, 1)
		step(58*time.Minute, 1, 1, 1)
		step(2*time.Minute, 2, 1, 1) // the same again is no news
		says.Store("https://auth.example")
		step(time.Hour, 3, 2, 0)
		says.Store("")
		step(time.Hour, 4, 3, 1)
		step(resourcePause, 5, 3, 1) // and soon again after a failure
		if r.Of("quiet") != nil {
			t.Error("want no check of an upstream without discover")
		}
		// A new question is asked at once, an upstream that is gone is forgotten.
		moved := *up
		moved.URL = "https://a.example/v2"
		in.Store(&[]*policy.Upstream{&moved})
		time.Sleep(resourceTick)
		synctest.Wait()
		in.Store(&[]*policy.Upstream{&quiet})
		time.Sleep(resourceTick)
		synctest.Wait()
		if r.Of("tools") != nil {
			t.Error("want an upstream that is gone forgotten")
		}
		cancel()
		<-done
	})
}
