package alert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/collector"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// attemptTime bounds one attempt to deliver, and gatherTime is waited for what
	// comes with an alert, so that one cause with many alerts is one message.
	attemptTime = 10 * time.Second
	gatherTime  = 300 * time.Millisecond
	// firstPause doubles with every attempt up to maxPause, give or take a fifth.
	firstPause = time.Second
	maxPause   = time.Minute
	// giveUp is after how long a message is no news any more.
	giveUp = 15 * time.Minute
	// maxQueue bounds what waits for one receiver, and maxBatch one message.
	maxQueue = 1000
	maxBatch = 100
	// maxAnswer is what is read of an answer, to use its connection again.
	maxAnswer = 16 << 10
)

// The kinds of receivers, in metrics and logs.
const (
	kindWebhook      = "webhook"
	kindSlack        = "slack"
	kindAlertmanager = "alertmanager"
)

// Config is what Alerts needs.
type Config struct {
	// Secrets resolves keys and secret URLs, at each delivery. Required.
	Secrets collector.SecretSource
	// Now is the clock, Dice returns random numbers in [0,1). Required.
	Now  func() time.Time
	Dice func() float64
	// Log gets one line when a receiver begins to fail, and one when it takes alerts again.
	Log zerolog.Logger
	// Delivered is told how each message ended: ok, refused (the receiver will not have
	// it), gave_up or dropped; and retried for each attempt that failed otherwise. It
	// may be nil.
	Delivered func(kind, result string)
	// Transport replaces the network, in tests.
	Transport http.RoundTripper
}

// Alerts delivers alerts. Its methods may be called from any number of goroutines,
// but for Build and Use, which are for one at a time.
type Alerts struct {
	cfg Config

	mu     sync.Mutex
	active map[Subject]lasting
	plan   *Plan
}

// lasting is an alert that is not over, and how much that was done about it was told.
type lasting struct {
	Alert

	told int
}

// Plan is whom a policy tells, ready to be put in force.
type Plan struct {
	link      string
	receivers []*receiver
}

// New returns Alerts that tell nobody until Use.
func New(cfg Config) *Alerts {
	if cfg.Delivered == nil {
		cfg.Delivered = func(string, string) {}
	}
	return &Alerts{cfg: cfg, active: map[Subject]lasting{}, plan: &Plan{}}
}

// Build makes the receivers of a policy, and changes nothing. Those that stay as
// they are keep what waits for them. An error is about the file of an authority.
func (a *Alerts) Build(w *policy.Watch) (*Plan, error) {
	var spec policy.WatchAlerts
	if w != nil {
		spec = w.Alerts
	}
	p := &Plan{link: spec.Link}
	var made []*receiver
	if s := spec.Webhook; s != nil {
		made = append(made, &receiver{kind: kindWebhook, spec: *s, ca: s.CA, post: a.webhook(s)})
	}
	if s := spec.Slack; s != nil {
		made = append(made, &receiver{kind: kindSlack, spec: *s, ca: s.CA, post: a.slack(s)})
	}
	if s := spec.Alertmanager; s != nil {
		for _, u := range s.URLs {
			one := *s
			one.URLs = []string{u}
			made = append(made, &receiver{kind: kindAlertmanager, spec: one, ca: s.CA, repeat: repeatEvery, post: a.alertmanager(&one)})
		}
	}
	for _, r := range made {
		if old := a.same(r); old != nil {
			p.receivers = append(p.receivers, old)
			continue
		}
		if err := a.open(r); err != nil {
			return nil, err
		}
		p.receivers = append(p.receivers, r)
	}
	return p, nil
}

// same returns the receiver in force that is just like r.
func (a *Alerts) same(r *receiver) *receiver {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, old := range a.plan.receivers {
		if old.kind == r.kind && reflect.DeepEqual(old.spec, r.spec) {
			return old
		}
	}
	return nil
}

// open makes the way to a receiver.
func (a *Alerts) open(r *receiver) error {
	r.alerts, r.wake = a, make(chan struct{}, 1)
	transport := collector.New(collector.Config{Key: "watch.alerts." + r.kind, CA: r.ca, Secrets: a.cfg.Secrets, Timeout: attemptTime})
	if err := transport.Check(); err != nil {
		return err
	}
	r.client = transport.Client()
	if a.cfg.Transport != nil {
		r.client.Transport = a.cfg.Transport
	}
	return nil
}

// Use puts a plan in force. Receivers that are new are told of what lasts already.
func (a *Alerts) Use(p *Plan) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.plan
	a.plan = p
	for _, r := range old.receivers {
		if !p.has(r) {
			r.stop()
		}
	}
	for _, r := range p.receivers {
		if !old.has(r) {
			for _, alert := range a.active {
				r.queue = append(r.queue, alert.Alert)
			}
			r.start()
		}
	}
}

func (p *Plan) has(r *receiver) bool { return slices.Contains(p.receivers, r) }

// Close ends every delivery. What waits is lost.
func (a *Alerts) Close() { a.Use(&Plan{}) }

// Notify takes an alert that began, has new figures, or is over. An alert that
// lasts is told once, however often it comes, and again only when more was done
// about it. It does not wait for anybody.
func (a *Alerts) Notify(alert Alert) {
	a.mu.Lock()
	defer a.mu.Unlock()
	about := alert.Subject()
	was, lasts := a.active[about]
	var news bool
	if alert.Until.IsZero() {
		news = !lasts || len(alert.Done) > was.told
		a.active[about] = lasting{alert, max(was.told, len(alert.Done))}
	} else {
		news = lasts
		delete(a.active, about)
	}
	if !news {
		return
	}
	for _, r := range a.plan.receivers {
		if len(r.queue) >= maxQueue {
			r.queue = r.queue[1:]
			a.cfg.Delivered(r.kind, "dropped")
		}
		r.queue = append(r.queue, alert)
		r.rouse()
	}
}

// receiver is one that is told.
type receiver struct {
	kind   string
	spec   any
	ca     string
	post   func(r *receiver, batch []Alert) (request, error)
	repeat time.Duration // how often what lasts is told again; 0 for never
	client *http.Client
	alerts *Alerts
	wake   chan struct{}
	cancel context.CancelFunc
	queue  []Alert // guarded by Alerts.mu
	ill    string  // the failure last logged
}

// request is a message as it is posted.
type request struct {
	url    string
	header http.Header
	body   []byte
}

func (r *receiver) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *receiver) start() {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.rouse()
	go r.run(ctx)
}

func (r *receiver) stop() { r.cancel() }

// run delivers until ctx ends. When a repeat is due does not depend on the news in
// between: what lasts is good for a few repeats only.
func (r *receiver) run(ctx context.Context) {
	now := r.alerts.cfg.Now
	due := now().Add(r.repeat)
	for ctx.Err() == nil {
		if r.wait(ctx, due.Sub(now())) {
			pause(ctx, gatherTime)
		}
		for ctx.Err() == nil {
			again := r.repeat > 0 && !now().Before(due)
			if again {
				due = now().Add(r.repeat)
			}
			batch := r.take(again)
			if len(batch) == 0 {
				break
			}
			r.deliver(ctx, batch)
		}
	}
}

// wait waits for news, and with a repeat no longer than until that is due. It reports
// whether there are any.
func (r *receiver) wait(ctx context.Context, until time.Duration) bool {
	var due <-chan time.Time
	if r.repeat > 0 {
		if until <= 0 {
			return false
		}
		t := time.NewTimer(until)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-r.wake:
		return true
	case <-due:
	}
	return false
}

// take returns the next batch: what is new, in order, and with all what lasts too.
func (r *receiver) take(all bool) []Alert {
	r.alerts.mu.Lock()
	defer r.alerts.mu.Unlock()
	n := min(len(r.queue), maxBatch)
	batch := append([]Alert{}, r.queue[:n]...)
	r.queue = append([]Alert{}, r.queue[n:]...)
	if all {
		for about, alert := range r.alerts.active {
			if len(batch) < maxQueue && !hasSubject(batch, about) {
				batch = append(batch, alert.Alert)
			}
		}
	}
	return batch
}

func hasSubject(batch []Alert, about Subject) bool {
	return slices.ContainsFunc(batch, func(a Alert) bool { return a.Subject() == about })
}

// refusedError is an answer after which the same message would be refused again.
type refusedError struct{ error }

// deliver posts a batch until it is taken, refused, or no news any more.
func (r *receiver) deliver(ctx context.Context, batch []Alert) {
	began, next := r.alerts.cfg.Now(), firstPause
	for {
		after, err := r.attempt(ctx, batch)
		if ctx.Err() != nil {
			return
		}
		r.tell(err)
		var refused refusedError
		switch now := r.alerts.cfg.Now(); {
		case err == nil:
			r.alerts.cfg.Delivered(r.kind, "ok")
			return
		case errors.As(err, &refused):
			r.alerts.cfg.Delivered(r.kind, "refused")
			return
		case now.Sub(began) >= giveUp:
			r.alerts.cfg.Delivered(r.kind, "gave_up")
			return
		}
		r.alerts.cfg.Delivered(r.kind, "retried")
		wait := time.Duration(float64(next) * (0.8 + 0.4*r.alerts.cfg.Dice()))
		pause(ctx, max(wait, min(after, maxPause)))
		next = min(2*next, maxPause)
	}
}

// tell logs what changed. Errors of this package hold no URL.
func (r *receiver) tell(err error) {
	log := &r.alerts.cfg.Log
	switch {
	case err == nil && r.ill != "":
		log.Info().Str("receiver", r.kind).Msg("alerts are delivered again")
		r.ill = ""
	case err != nil && r.ill != err.Error():
		log.Error().Str("receiver", r.kind).Err(err).Msg("an alert cannot be delivered; correct watch.alerts, or the receiver")
		r.ill = err.Error()
	}
}

// attempt posts a batch once. It returns how long the receiver asks to be left alone.
func (r *receiver) attempt(ctx context.Context, batch []Alert) (time.Duration, error) {
	m, err := r.post(r, batch)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url, bytes.NewReader(m.body))
	if err != nil {
		return 0, errURL
	}
	req.Header = m.header
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "envoy-mcp-auth")
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, bare(err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	return verdictOf(resp)
}

var errURL = errors.New("the URL is not one that can be posted to; want https://, or http:// for loopback")

// bare takes the URL out of an error, which may be a secret.
func bare(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return err
}

// verdictOf reads an answer. Of its body nothing is used: it may quote what it got.
func verdictOf(resp *http.Response) (time.Duration, error) {
	code := resp.StatusCode
	err := fmt.Errorf("it answers %d %s", code, http.StatusText(code))
	switch {
	case code/100 == 2:
		return 0, nil
	case code/100 == 3:
		return 0, refusedError{fmt.Errorf("it redirects (%d), which is not followed; write the URL that it leads to", code)}
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= http.StatusInternalServerError:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return time.Duration(max(0, min(seconds, 3600))) * time.Second, err
	}
	return 0, refusedError{err}
}

// pause sleeps, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
