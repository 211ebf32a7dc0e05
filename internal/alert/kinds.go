package alert

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// repeatEvery is how often Alertmanager is told what lasts, as Prometheus does it,
	// and goodFor how long it believes that without hearing it again.
	repeatEvery = time.Minute
	goodFor     = 4 * repeatEvery
	// minKey is the least length of a signature's key, in bytes.
	minKey = 24
	// slackLines bounds a message in a chat.
	slackLines = 20
)

// Status returns firing or resolved.
func (a *Alert) Status() string {
	if a.Until.IsZero() {
		return "firing"
	}
	return "resolved"
}

// hooked is the body of a webhook, by the payload structure of Standard Webhooks.
type hooked struct {
	Type      string     `json:"type"`
	Timestamp time.Time  `json:"timestamp"`
	Data      hookedData `json:"data"`
}

type hookedData struct {
	Link   string        `json:"link,omitempty"`
	Alerts []hookedAlert `json:"alerts"`
}

type hookedAlert struct {
	Status string `json:"status"`
	Alert
}

// webhook signs by Standard Webhooks (symmetric): HMAC-SHA256 over id, time and
// body. The id is the same for each attempt at a message; the time is the
// attempt's, so that a receiver can refuse what was recorded long ago.
func (a *Alerts) webhook(spec *policy.WatchWebhook) func(*receiver, []Alert) (request, error) {
	return func(_ *receiver, batch []Alert) (request, error) {
		secret, err := a.cfg.Secrets.Secret(spec.Secret)
		if err != nil {
			return request{}, fmt.Errorf("its secret: %w", err)
		}
		key, err := keyOf(secret.Reveal())
		if err != nil {
			return request{}, err
		}
		now := a.cfg.Now()
		m := hooked{Type: "mcp_auth.alerts", Timestamp: since(batch).UTC(), Data: hookedData{Link: a.link()}}
		for i := range batch {
			m.Data.Alerts = append(m.Data.Alerts, hookedAlert{batch[i].Status(), batch[i]})
		}
		body, err := json.Marshal(m)
		if err != nil {
			return request{}, fmt.Errorf("encoding: %w", err)
		}
		id, at := messageID(body), strconv.FormatInt(now.Unix(), 10)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		return request{spec.URL, http.Header{
			"Webhook-Id": {id}, "Webhook-Timestamp": {at},
			"Webhook-Signature": {"v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))},
		}, body}, nil
	}
}

// messageID is the same for every attempt at a message, and for no other.
func messageID(body []byte) string {
	sum := sha256.Sum256(body)
	return "msg_" + hex.EncodeToString(sum[:12])
}

// since is when the newest alert of a batch began or was over.
func since(batch []Alert) time.Time {
	var newest time.Time
	for i := range batch {
		for _, at := range []time.Time{batch[i].Since, batch[i].Until} {
			if at.After(newest) {
				newest = at
			}
		}
	}
	return newest
}

var (
	errKey     = fmt.Errorf("its secret is shorter than %d bytes; make one with: openssl rand -base64 32", minKey)
	errKeyText = errors.New("its secret begins with whsec_, and the rest is not base64; copy it again")
)

// keyOf reads a secret: as Standard Webhooks writes it, else as it is.
func keyOf(secret string) ([]byte, error) {
	key := []byte(secret)
	if text, ok := strings.CutPrefix(secret, "whsec_"); ok {
		var err error
		if key, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, errKeyText
		}
	}
	if len(key) < minKey {
		return nil, errKey
	}
	return key, nil
}

// slack posts one text. Slack's own formatting, and what would call everybody, is
// taken out of what callers chose.
func (a *Alerts) slack(spec *policy.WatchSlack) func(*receiver, []Alert) (request, error) {
	return func(_ *receiver, batch []Alert) (request, error) {
		secret, err := a.cfg.Secrets.Secret(spec.URL)
		if err != nil {
			return request{}, fmt.Errorf("its url: %w", err)
		}
		to := secret.Reveal()
		if !postable(to) {
			return request{}, errURL
		}
		var text strings.Builder
		for i := range batch {
			if i == slackLines {
				fmt.Fprintf(&text, "and %d more; see /status", len(batch)-slackLines)
				break
			}
			slackLine(&text, &batch[i])
		}
		if link := a.link(); link != "" {
			text.WriteString(harmless(link) + "\n")
		}
		body, err := json.Marshal(map[string]string{"text": strings.TrimSpace(text.String())})
		if err != nil {
			return request{}, fmt.Errorf("encoding: %w", err)
		}
		return request{to, http.Header{}, body}, nil
	}
}

func slackLine(b *strings.Builder, a *Alert) {
	at := a.Since
	if !a.Until.IsZero() {
		at = a.Until
	}
	fmt.Fprintf(b, "*%s* %s (%s, %s)\n%s\n", strings.ToUpper(a.Status()), a.Rule, a.Severity, at.UTC().Format(time.RFC3339), harmless(a.Summary))
	if a.Status() == "firing" {
		for _, done := range a.Done {
			b.WriteString("Done: " + harmless(done) + "\n")
		}
		b.WriteString("What to do: " + harmless(a.Runbook) + "\n")
	}
}

// harmless takes out what chats read as more than text: Slack's &, < and >, the
// marks of bold and code, and @ before a name.
func harmless(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "@", "@\u200b", "`", "'").Replace(s)
}

// postable holds a secret URL to what the check holds others to.
func postable(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
}

// posted is an alert in Alertmanager's API, version 2.
type posted struct {
	Labels       map[string]string `json:"labels"`
	Annotations  map[string]string `json:"annotations"`
	StartsAt     time.Time         `json:"startsAt"`
	EndsAt       time.Time         `json:"endsAt"`
	GeneratorURL string            `json:"generatorURL,omitempty"`
}

// alertmanager posts alerts with their ends: of one that lasts, some minutes from
// now, so that it does not outlive this process for long.
func (a *Alerts) alertmanager(spec *policy.WatchAlertmanager) func(*receiver, []Alert) (request, error) {
	return func(_ *receiver, batch []Alert) (request, error) {
		header := http.Header{}
		if !spec.Authorization.IsZero() {
			secret, err := a.cfg.Secrets.Secret(spec.Authorization)
			if err != nil {
				return request{}, fmt.Errorf("its authorization: %w", err)
			}
			header.Set("Authorization", secret.Reveal())
		}
		now, link := a.cfg.Now(), a.link()
		list := make([]posted, 0, len(batch))
		for i := range batch {
			list = append(list, post(&batch[i], spec.Labels, now, link))
		}
		// What began and ended within one batch is there twice: the last one counts.
		body, err := json.Marshal(list)
		if err != nil {
			return request{}, fmt.Errorf("encoding: %w", err)
		}
		return request{spec.URLs[0], header, body}, nil
	}
}

func post(a *Alert, labels []policy.Param, now time.Time, link string) posted {
	p := posted{
		Labels:      map[string]string{"alertname": alertName(a.Rule), "rule": a.Rule, "severity": string(a.Severity)},
		Annotations: map[string]string{"summary": a.Summary, "description": strings.Join(slices.Concat(a.Done, []string{a.Runbook}), "\n")},
		StartsAt:    a.Since.UTC(), EndsAt: now.Add(goodFor).UTC(), GeneratorURL: link,
	}
	if !a.Until.IsZero() {
		p.EndsAt = a.Until.UTC()
	}
	for _, l := range labels {
		p.Labels[l.Name] = l.Value
	}
	for name, value := range map[string]string{"upstream": a.Upstream, "stage": a.Stage, "caller": a.Caller, "tool": a.Tool} {
		if value != "" {
			p.Labels[name] = value
		}
	}
	return p
}

// alertName writes auth_failures as MCPAuthAuthFailures.
func alertName(rule string) string {
	var b strings.Builder
	b.WriteString("MCPAuth")
	for word := range strings.SplitSeq(rule, "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

func (a *Alerts) link() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.plan.link
}
