package alert_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const key = "0123456789abcdef0123456789abcdef"

// box resolves every secret to what is in it.
type box struct {
	value string
	err   error
}

func (b box) Secret(policy.SecretRef) (policy.Secret, error) {
	return policy.NewSecret(b.value), b.err
}

// network is a receiver at the other end, and its mail.
type network struct {
	mu     sync.Mutex
	mail   []letter
	answer func(n int) (*http.Response, error) // of the nth request, from 0
}

type letter struct {
	url    string
	header http.Header
	body   string
	at     time.Time
}

func (n *network) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	n.mu.Lock()
	i := len(n.mail)
	n.mail = append(n.mail, letter{r.URL.String(), r.Header, string(body), time.Now()})
	answer := n.answer
	n.mu.Unlock()
	if answer != nil {
		return answer(i)
	}
	return status(http.StatusOK), nil
}

func (n *network) letters() []letter {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]letter{}, n.mail...)
}

func status(code int, headers ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader("what it got"))}
}

// tally counts results.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) count(kind, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[kind+" "+result]++
}

func (c *tally) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.n)
}

func webhook() *policy.Watch {
	return &policy.Watch{Alerts: policy.WatchAlerts{Webhook: &policy.WatchWebhook{URL: "https://hook.example/x"}, Link: "https://grafana.example/d/1"}}
}

func broken() alert.Alert {
	return alert.Alert{
		Rule: "auth_failures", Upstream: "crm", Stage: "credential", Severity: alert.Critical, Since: time.Now(),
		Summary: "12 % of the 40 calls failed", Figures: map[string]float64{"calls": 40}, Done: []string{"upstream crm is switched off"}, Runbook: "Look.",
	}
}

func over(a alert.Alert) alert.Alert {
	a.Until = time.Now()
	return a
}

// try runs f in a bubble of its own time, with alerts for a policy.
func try(t *testing.T, n *network, secret box, w *policy.Watch, f func(*alert.Alerts, *tally)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var c tally
		a := alert.New(alert.Config{
			Secrets: secret, Now: time.Now, Dice: func() float64 { return 0.5 }, Delivered: c.count, Transport: n,
		})
		plan, err := a.Build(w)
		if err != nil {
			t.Fatal(err)
		}
		a.Use(plan)
		defer synctest.Wait()
		defer a.Close()
		f(a, &c)
	})
}

// TestWebhookIsSigned: by Standard Webhooks, with the secret as it is or as whsec_.
func TestWebhookIsSigned(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{key, "whsec_" + base64.StdEncoding.EncodeToString([]byte(key))} {
		n := &network{}
		try(t, n, box{value: secret}, webhook(), func(a *alert.Alerts, c *tally) {
			a.Notify(broken())
			time.Sleep(time.Second)
			a.Notify(over(broken()))
			time.Sleep(time.Second)
			all := n.letters()
			if len(all) != 2 || c.String() != "map[webhook ok:2]" {
				t.Fatalf("want two letters, got %+v, %v", all, c)
			}
			for i, want := range []string{"firing", "resolved"} {
				l := all[i]
				mac := hmac.New(sha256.New, []byte(key))
				mac.Write([]byte(l.header.Get("Webhook-Id") + "." + l.header.Get("Webhook-Timestamp") + "." + l.body))
				if got := l.header.Get("Webhook-Signature"); got != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
					t.Errorf("signature %q", got)
				}
				if at, _ := strconv.ParseInt(l.header.Get("Webhook-Timestamp"), 10, 64); at != l.at.Unix() {
					t.Errorf("timestamp %q, posted at %d", l.header.Get("Webhook-Timestamp"), l.at.Unix())
				}
				var got struct {
					Type string `json:"type"`
					Data struct {
						Link   string `json:"link"`
						Alerts []struct{ Status, Rule, Upstream, Summary, Runbook string }
					} `json:"data"`
				}
				if err := json.Unmarshal([]byte(l.body), &got); err != nil {
					t.Fatal(err)
				}
				if d := got.Data; got.Type != "mcp_auth.alerts" || d.Link == "" || len(d.Alerts) != 1 || d.Alerts[0].Status != want || d.Alerts[0].Upstream != "crm" || d.Alerts[0].Runbook == "" {
					t.Errorf("got %s", l.body)
				}
			}
			if all[0].header.Get("Webhook-Id") == all[1].header.Get("Webhook-Id") {
				t.Error("two messages have one id")
			}
		})
	}
}

// TestRetries: what may pass is tried again with the same id, and not at once; what
// never will be taken is not.
func TestRetries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer   func(int) (*http.Response, error)
		attempts int
		counted  string
	}{
		"down twice": {
			func(i int) (*http.Response, error) {
				if i < 2 {
					return nil, errors.New("connection refused")
				}
				return status(http.StatusNoContent), nil
			}, 3, "map[webhook ok:1 webhook retried:2]",
		},
		"503, then well": {
			func(i int) (*http.Response, error) { return status([]int{503, 429, 408, 200}[i]), nil }, 4, "map[webhook ok:1 webhook retried:3]",
		},
		"asks for a minute": {
			func(i int) (*http.Response, error) { return status([]int{503, 200}[i], "Retry-After", "60"), nil }, 2, "map[webhook ok:1 webhook retried:1]",
		},
		"does not want it":   {func(int) (*http.Response, error) { return status(http.StatusForbidden), nil }, 1, "map[webhook refused:1]"},
		"redirects":          {func(int) (*http.Response, error) { return status(302, "Location", "https://evil.example"), nil }, 1, "map[webhook refused:1]"},
		"down for an hour":   {func(int) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, 21, "map[webhook gave_up:1 webhook retried:20]"},
		"a redirect by 307s": {func(int) (*http.Response, error) { return status(307, "Location", "http://127.0.0.1:1"), nil }, 1, "map[webhook refused:1]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := &network{answer: c.answer}
			try(t, n, box{value: key}, webhook(), func(a *alert.Alerts, counted *tally) {
				a.Notify(broken())
				time.Sleep(time.Hour)
				all := n.letters()
				if len(all) != c.attempts || counted.String() != c.counted {
					t.Fatalf("want %d attempts and %s, got %d and %v", c.attempts, c.counted, len(all), counted)
				}
				for i := 1; i < len(all); i++ {
					if all[i].header.Get("Webhook-Id") != all[0].header.Get("Webhook-Id") || all[i].body != all[0].body {
						t.Errorf("attempt %d is another message", i)
					}
					if gap := all[i].at.Sub(all[i-1].at); gap < 700*time.Millisecond || name == "asks for a minute" && gap < time.Minute {
						t.Errorf("attempt %d came %v after the one before", i, gap)
					}
				}
			})
		})
	}
}

// TestNotifyDoesNotWait: nor is more kept than a receiver can catch up with.
func TestNotifyDoesNotWait(t *testing.T) {
	t.Parallel()
	hung := make(chan struct{})
	n := &network{answer: func(int) (*http.Response, error) {
		<-hung
		return status(http.StatusOK), nil
	}}
	try(t, n, box{value: key}, webhook(), func(a *alert.Alerts, c *tally) {
		begin := time.Now()
		for i := range 5000 {
			one := broken()
			one.Upstream = strconv.Itoa(i)
			a.Notify(one)
		}
		if time.Since(begin) != 0 {
			t.Errorf("Notify took %v", time.Since(begin))
		}
		if c.String() != "map[webhook dropped:4000]" {
			t.Errorf("want 4000 dropped, got %v", c)
		}
		close(hung)
		time.Sleep(time.Minute)
		if got := len(n.letters()); got != 10 {
			t.Errorf("want 1000 in 10 letters, got %d", got)
		}
	})
}

// TestToldOnce: new figures are not news; more that was done is.
func TestToldOnce(t *testing.T) {
	t.Parallel()
	n := &network{}
	try(t, n, box{value: key}, webhook(), func(a *alert.Alerts, _ *tally) {
		one := broken()
		one.Done = nil
		tell := func(want int) {
			t.Helper()
			a.Notify(one)
			time.Sleep(time.Second)
			if got := len(n.letters()); got != want {
				t.Errorf("want %d letters, got %d", want, got)
			}
		}
		tell(1)
		one.Summary = "other figures"
		tell(1)
		one.Done = []string{"upstream crm is switched off"}
		tell(2)
		tell(2)
		one = over(one)
		tell(3)
		tell(3)
	})
}

// TestWrongSecret: without a good key nothing is sent, and it is tried again: a
// secret comes back by a rotation.
func TestWrongSecret(t *testing.T) {
	t.Parallel()
	for name, secret := range map[string]box{
		"short": {value: "short"}, "no base64": {value: "whsec_%%%"}, "short base64": {value: "whsec_AAAA"}, "away": {err: errors.New("no such file")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := &network{}
			try(t, n, secret, webhook(), func(a *alert.Alerts, c *tally) {
				a.Notify(broken())
				time.Sleep(5 * time.Second)
				if len(n.letters()) != 0 || !strings.Contains(c.String(), "retried") {
					t.Errorf("want nothing sent, got %v, %v", n.letters(), c)
				}
			})
		})
	}
}

// TestSlack: one text in which nothing is markup that callers chose. The URL is a
// secret, and has to be one that can be posted to.
func TestSlack(t *testing.T) {
	t.Parallel()
	w := &policy.Watch{Alerts: policy.WatchAlerts{Slack: &policy.WatchSlack{}}}
	for url, sent := range map[string]bool{
		"https://chat.example/T0/B0/x": true, "http://127.0.0.1:80/x": true, "http://chat.example/x": false, "https://u:p@chat.example": false, "file:///etc": false,
	} {
		n := &network{}
		try(t, n, box{value: url}, w, func(a *alert.Alerts, _ *tally) {
			one := broken()
			one.Tool, one.Summary = "x", "Tool <!channel> @here `rm` & co"
			a.Notify(one)
			time.Sleep(time.Second)
			all := n.letters()
			if len(all) > 0 != sent {
				t.Fatalf("%s: want it posted: %v, got %+v", url, sent, all)
			}
			if !sent {
				return
			}
			var got struct{ Text string }
			if err := json.Unmarshal([]byte(all[0].body), &got); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(got.Text, "*FIRING* auth_failures (critical, ") || strings.ContainsAny(got.Text, "<>`") || strings.Contains(got.Text, "@here") ||
				!strings.Contains(got.Text, "What to do: Look.") || !strings.Contains(got.Text, "Done: upstream crm is switched off") {
				t.Errorf("got %q", got.Text)
			}
		})
	}
}

// TestAlertmanager: by its API, every minute while it lasts, with an end a few
// minutes off, and the end when it is over.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	w := &policy.Watch{Alerts: policy.WatchAlerts{Alertmanager: &policy.WatchAlertmanager{
		URLs: []string{"https://one.example/api/v2/alerts", "https://two.example/api/v2/alerts"}, Labels: []policy.Param{{Name: "cluster", Value: "eu1"}},
		Authorization: policy.SecretRef{Kind: policy.SecretEnv, Name: "AM"},
	}}}
	n := &network{}
	try(t, n, box{value: "Bearer am"}, w, func(a *alert.Alerts, _ *tally) {
		one := broken()
		a.Notify(one)
		time.Sleep(150 * time.Second)
		a.Notify(over(one))
		time.Sleep(time.Second)
		var to []letter
		for _, l := range n.letters() {
			if strings.HasPrefix(l.url, "https://one.") {
				to = append(to, l)
			}
		}
		if len(to) != 4 || len(n.letters()) != 8 {
			t.Fatalf("want 4 letters to each, got %d of %d", len(to), len(n.letters()))
		}
		for i, l := range to {
			var got []struct {
				Labels, Annotations map[string]string
				StartsAt, EndsAt    time.Time
			}
			if err := json.Unmarshal([]byte(l.body), &got); err != nil || len(got) != 1 {
				t.Fatalf("%v: %s", err, l.body)
			}
			g := got[0]
			if g.Labels["alertname"] != "MCPAuthAuthFailures" || g.Labels["cluster"] != "eu1" || g.Labels["upstream"] != "crm" || g.Labels["severity"] != "critical" || g.Annotations["summary"] == "" {
				t.Errorf("got %s", l.body)
			}
			if ends := g.EndsAt.Sub(l.at); i < 3 && ends != 4*time.Minute || i == 3 && ends > 0 || !g.StartsAt.Equal(one.Since) {
				t.Errorf("letter %d: begins %v, ends %v from then", i, g.StartsAt, ends)
			}
			if l.header.Get("Authorization") != "Bearer am" {
				t.Errorf("authorization %q", l.header.Get("Authorization"))
			}
		}
	})
}

// TestLastingAlertIsRepeatedAmongNews: other news, however often, and a receiver that
// is slow to take it, do not let Alertmanager believe that what lasts is over.
func TestLastingAlertIsRepeatedAmongNews(t *testing.T) {
	t.Parallel()
	w := &policy.Watch{Alerts: policy.WatchAlerts{Alertmanager: &policy.WatchAlertmanager{URLs: []string{"https://one.example/api/v2/alerts"}}}}
	for name, c := range map[string]struct{ every, takes time.Duration }{
		"news within each minute":          {45 * time.Second, 0},
		"news faster than the receiver is": {2 * time.Second, 5 * time.Second},
		"news just when the repeat is due": {time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := &network{}
			try(t, n, box{value: "Bearer am"}, w, func(a *alert.Alerts, _ *tally) {
				if c.takes > 0 {
					end := make(chan struct{})
					defer close(end)
					n.answer = func(int) (*http.Response, error) {
						select {
						case <-time.After(c.takes):
						case <-end:
						}
						return status(http.StatusOK), nil
					}
				}
				a.Notify(broken())
				other, begin := broken(), time.Now()
				for i := 0; time.Since(begin) < 20*time.Minute; i++ {
					time.Sleep(min(c.every, 20*time.Minute-time.Since(begin)))
					other.Upstream = strconv.Itoa(i)
					a.Notify(other)
					a.Notify(over(other))
				}
				var ends time.Time
				for _, l := range n.letters() {
					var got []struct {
						Labels map[string]string
						EndsAt time.Time
					}
					if err := json.Unmarshal([]byte(l.body), &got); err != nil {
						t.Fatal(err)
					}
					for _, g := range got {
						if g.Labels["upstream"] != "crm" {
							continue
						}
						if !ends.IsZero() && l.at.After(ends) {
							t.Errorf("told %v after the end that was told before", l.at.Sub(ends))
						}
						ends = g.EndsAt
					}
				}
				if left := time.Until(ends); left < 2*time.Minute {
					t.Errorf("want it told to last for minutes to come, got %v", left)
				}
			})
		})
	}
}

// TestReloadKeepsWhatWaits: a receiver that stays is not asked twice, and a new one
// is told of what lasts.
func TestReloadKeepsWhatWaits(t *testing.T) {
	t.Parallel()
	n := &network{}
	try(t, n, box{value: key}, webhook(), func(a *alert.Alerts, _ *tally) {
		use := func(w *policy.Watch) {
			plan, err := a.Build(w)
			if err != nil {
				t.Fatal(err)
			}
			a.Use(plan)
			time.Sleep(time.Second)
		}
		a.Notify(broken())
		use(webhook())
		if got := len(n.letters()); got != 1 {
			t.Errorf("want one letter, got %d", got)
		}
		other := webhook()
		other.Alerts.Webhook.URL = "https://other.example"
		use(other)
		if all := n.letters(); len(all) != 2 || all[1].url != "https://other.example" {
			t.Errorf("want the new receiver told, got %+v", all)
		}
		use(nil)
		a.Notify(over(broken()))
		time.Sleep(time.Second)
		if got := len(n.letters()); got != 2 {
			t.Errorf("want nobody told any more, got %d", got)
		}
	})
}

// TestRedirectIsNotFollowed holds the client that is used in earnest to it.
func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	strayed := make(chan struct{}, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { strayed <- struct{}{} }))
	defer elsewhere.Close()
	hook := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusPermanentRedirect))
	defer hook.Close()
	ended := make(chan string, 10)
	a := alert.New(alert.Config{
		Secrets: box{value: key}, Now: time.Now, Dice: func() float64 { return 0.5 }, Delivered: func(_, result string) { ended <- result },
	})
	defer a.Close()
	w := webhook()
	w.Alerts.Webhook.URL = hook.URL
	plan, err := a.Build(w)
	if err != nil {
		t.Fatal(err)
	}
	a.Use(plan)
	a.Notify(broken())
	if got := <-ended; got != "refused" || len(strayed) > 0 {
		t.Errorf("want it refused and nobody else asked, got %s, %d", got, len(strayed))
	}
}
