package tokens

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// workload is a credential of the jwt_bearer grant without a client.
func workload(url, path string) *policy.OAuth2 {
	o := spec(url)
	o.Grant, o.Assertion, o.AuthMethod = policy.JWTBearer, path, policy.NoClientAuth
	o.ClientID, o.ClientSecret = "", policy.SecretRef{}
	return o
}

func workloads() map[string]tokenstest.Client {
	return map[string]tokenstest.Client{"pod": {NeedsResource: true}}
}

// TestU12_WorkloadIdentity: with and without a client, and the file is read at
// every use.
func TestU12_WorkloadIdentity(t *testing.T) {
	as := startAS(t, tokenstest.Config{Workloads: workloads()})
	path := filepath.Join(t.TempDir(), "token")
	alone, client, found := workload(as.TokenURL(), path), workload(as.TokenURL(), path), workload("", path)
	client.ClientID, client.AuthMethod, client.ClientSecret = clientID, policy.ClientSecretBasic, policy.SecretRef{Kind: policy.SecretEnv, Name: "x"}
	found.Issuer = as.Issuer()
	for name, o := range map[string]*policy.OAuth2{"alone": alone, "with a client": client, "discovered": found} {
		t.Run(name, func(t *testing.T) {
			s := source(t, newCache(t, nil), "a", o)
			var sent []string
			for range 2 {
				jwt := as.Workload("pod", time.Minute)
				write(t, path, jwt+"\n")
				tok, err := s.Token(t.Context())
				if err == nil && len(sent) == 1 {
					_, err = s.Replace(t.Context(), tok.Authorization())
				}
				if err != nil {
					t.Fatal(err)
				}
				log := as.Recorded()
				r := log[len(log)-1]
				sent = append(sent, r.Form.Get("assertion"))
				if sent[len(sent)-1] != jwt || r.Form.Get("grant_type") != jwtBearer || r.Form.Get("resource") == "" || len(r.Form["scope"]) != 1 {
					t.Errorf("got %v", r.Form)
				}
				if basic := r.Header.Get("Authorization") != ""; basic != (o == client) || r.Form.Has("client_id") || r.Form.Has("client_assertion") {
					t.Errorf("want no other proof, got %v %v", r.Header, r.Form)
				}
			}
			if st := s.Status(); st.Grant != "jwt_bearer" || st.Endpoint != as.TokenURL() {
				t.Errorf("got %+v", st)
			}
		})
	}
}

// TestU12_ARefusalIsFinal: one request, no other grant, no other method; but a
// new token of the platform is tried within seconds.
func TestU12_ARefusalIsFinal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, "a.b.c")
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.status, w.as.body = 400, `{"error":"invalid_grant"}`
		s := source(t, w.cache, "a", workload("https://as.test/token", path))
		for range 240 {
			_, err := s.Token(t.Context())
			if e := failed(t, err); e.Code != "invalid_grant" {
				t.Fatalf("got %v", e)
			}
			time.Sleep(time.Second)
		}
		if n := w.as.requests(); n != 1 {
			t.Errorf("want 1 request in 4 minutes, got %d", n)
		}
		w.as.set(func(f *fake) { f.status, f.excused = 0, time.Now() })
		write(t, path, "a.b.d")
		time.Sleep(secretPoll)
		synctest.Wait()
		if s.Cached() == nil || w.as.requests() != 2 {
			t.Errorf("want a token from the new assertion, got %d requests", w.as.requests())
		}
	})
}

// TestS4_U12_AssertionsThatCannotBeShown are named by their fault, and none is
// quoted, by us or by a server.
func TestS4_U12_AssertionsThatCannotBeShown(t *testing.T) {
	as := startAS(t, tokenstest.Config{Workloads: workloads()})
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	shown := func(s *Source, err error, log *buffer) string {
		return err.Error() + log.String() + string(must(json.Marshal(s.Status())))
	}
	for want, text := range map[string]string{"no signed JWT": "c4n4ry", "at most": strings.Repeat("a", maxAssertion+1)} {
		write(t, path, text)
		var log buffer
		s := source(t, newCache(t, func(c *Config) { c.Log = zerolog.New(&log) }), "a", workload(as.TokenURL(), path))
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Kind != Unavailable || e.Code != "assertion_unreadable" || !strings.Contains(e.Text, want) {
			t.Errorf("want assertion_unreadable, %s, got %v", want, e)
		}
		if strings.Contains(shown(s, err, &log), "c4n4ry") {
			t.Error("the assertion is in the output")
		}
	}
	for _, absent := range []string{filepath.Join(dir, "absent"), dir} {
		_, err := source(t, newCache(t, nil), "a", workload(as.TokenURL(), absent)).Token(t.Context())
		if e := failed(t, err); e.Code != "assertion_unreadable" {
			t.Errorf("%s: got %v", absent, e)
		}
	}
	if as.Requests() != 0 {
		t.Error("a request without an assertion was sent")
	}
	jwt := as.Workload("pod", time.Minute)
	write(t, path, jwt)
	for _, f := range []tokenstest.Fault{tokenstest.EchoForm, "echo_description"} {
		as.Fail(f)
		var log buffer
		s := source(t, newCache(t, func(c *Config) { c.Log = zerolog.New(&log).Level(zerolog.TraceLevel) }), "a", workload(as.TokenURL(), path))
		_, err := s.Token(t.Context())
		for piece := range strings.SplitSeq(jwt, ".") {
			if strings.Contains(shown(s, err, &log), piece) {
				t.Errorf("%s: a piece of the assertion is in the output", f)
			}
		}
	}
}

// TestRefreshIn: the endpoint may say when to come back, within reason.
func TestRefreshIn(t *testing.T) {
	for name, c := range map[string]struct {
		body       string
		least, top time.Duration
	}{
		"half":        {`"expires_in":3600,"refresh_in":1800`, 27 * time.Minute, 30 * time.Minute},
		"string":      {`"expires_in":3600,"refresh_in":"1800"`, 27 * time.Minute, 30 * time.Minute},
		"none":        {`"expires_in":3600`, 46 * time.Minute, 50 * time.Minute},
		"nonsense":    {`"expires_in":3600,"refresh_in":"soon"`, 46 * time.Minute, 50 * time.Minute},
		"past expiry": {`"expires_in":3600,"refresh_in":7200`, 46 * time.Minute, 50 * time.Minute},
		"soon":        {`"expires_in":3600,"refresh_in":5`, 27 * time.Second, 30 * time.Second},
		"zero":        {`"expires_in":3600,"refresh_in":0`, 46 * time.Minute, 50 * time.Minute},
		"at the end":  {`"expires_in":3600,"refresh_in":3599`, 48 * time.Minute, 54 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.as.status, w.as.body = 200, `{"access_token":"a","token_type":"Bearer",`+c.body+`}`
				s := source(t, w.cache, "a", res("a"))
				if _, err := s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(55 * time.Minute)
				if w.as.requests() < 2 || w.as.gap() < c.least || w.as.gap() > c.top {
					t.Errorf("want the refresh between %s and %s, got %d requests", c.least, c.top, w.as.requests())
				}
			})
		})
	}
}

// TestStaleGrace: an expired token stands in for the time given while the
// endpoint is down, for the upstream that asked for it, until that refuses it.
func TestStaleGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		o := res("a")
		strict := source(t, w.cache, "strict", o)
		o.StaleGrace = 10 * time.Minute
		lenient, other := source(t, w.cache, "lenient", o), source(t, w.cache, "other", o)
		old, err := lenient.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.status = 503 })
		time.Sleep(time.Minute + time.Second) // its life
		if tok, err := strict.Token(t.Context()); err == nil || strict.Status().Stale {
			t.Errorf("without stale_grace: want a failure, got %v", tok)
		}
		for range 500 {
			if tok, err := lenient.Token(t.Context()); err != nil || tok != old {
				t.Fatalf("within the grace: got %v, %v", tok, err)
			}
			time.Sleep(time.Second)
		}
		if st := lenient.Status(); !st.Stale || st.Ready || lenient.Cached() != nil {
			t.Errorf("want it shown as stale and not as ready, got %+v", st)
		}
		if n := w.as.requests(); n > 150 {
			t.Errorf("want the usual pace of tries, got %d", n)
		}
		if _, err := lenient.Replace(t.Context(), old.Authorization()); err == nil {
			t.Error("after a 401: want a failure")
		}
		if _, err := lenient.Token(t.Context()); err == nil || lenient.Status().Stale {
			t.Error("after a 401, the stale token must be gone for this upstream")
		}
		if tok, err := other.Token(t.Context()); err != nil || tok != old {
			t.Errorf("another upstream's grace must go on, got %v", err)
		}
		time.Sleep(100 * time.Second) // 10 minutes are over
		if _, err := other.Token(t.Context()); err == nil {
			t.Error("after the grace: want a failure")
		}
		w.as.set(func(f *fake) { f.status = 0 })
		time.Sleep(callerCap)
		if tok, err := lenient.Token(t.Context()); err != nil || tok == old {
			t.Errorf("after the outage: got %v", err)
		}
	})
}

// TestStaleGrace_NotWhenRefused: a refusal is not an outage.
func TestStaleGrace_NotWhenRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		o := res("a")
		o.StaleGrace = time.Hour
		s := source(t, w.cache, "a", o)
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.status, f.body = 401, `{"error":"invalid_client"}` })
		time.Sleep(2 * time.Minute)
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Code != "invalid_client" {
			t.Errorf("got %v", e)
		}
	})
}
