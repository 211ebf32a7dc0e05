package policy

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// The bounds of what is counted for the watch.
const (
	minWatchWindow = 10 * time.Second
	maxWatchWindow = time.Hour
	maxSweepTools  = 500
	maxWatchCount  = 1_000_000
	maxLearn       = 7 * 24 * time.Hour
	maxWatchTime   = 24 * time.Hour
)

// watch checks the `watch` block.
func (c *checker) watch(path string, spec *WatchSpec) {
	c.watchRules(path, spec.rules())
	if s := spec.Sweep; s != nil {
		p := path + ".sweep"
		c.numberIn(p+".tools", s.Tools, 2, maxSweepTools)
		c.durationIn(p+".window", s.Window, minWatchWindow, maxWatchWindow)
		c.responses(p+".do", s.Do, "alert", "throttle")
		c.toolsKnown(p)
	}
	if p := path + ".tool_usage"; spec.ToolUsage != nil {
		c.toolsKnown(p)
	}
	c.watchAlerts(path+".alerts", &spec.Alerts)
}

// rules are the rules that an upstream has too.
func (s *WatchSpec) rules() *UpstreamWatchSpec {
	return &UpstreamWatchSpec{s.AuthFailures, s.Errors, s.TokenEndpoint, s.ToolUsage, s.Breaker, s.Throttle}
}

func (c *checker) watchRules(path string, spec *UpstreamWatchSpec) {
	if r := spec.AuthFailures; r != nil {
		c.shareRule(path+".auth_failures", r.Share, r.MinCalls, r.Window, r.Do)
	}
	if r := spec.Errors; r != nil {
		c.shareRule(path+".errors", r.Share, r.MinCalls, r.Window, r.Do)
	}
	if r := spec.TokenEndpoint; r != nil {
		p := path + ".token_endpoint"
		c.numberIn(p+".failures", r.Failures, 1, maxWatchCount)
		c.durationIn(p+".for", r.For, time.Second, maxWatchTime)
		c.responses(p+".do", r.Do, "alert")
	}
	if r := spec.ToolUsage; r != nil {
		p := path + ".tool_usage"
		c.numberIn(p+".factor", r.Factor, 2, 1000)
		c.numberIn(p+".min_calls", r.MinCalls, 1, maxWatchCount)
		c.durationIn(p+".window", r.Window, time.Minute, maxWatchWindow)
		c.durationIn(p+".learn", r.Learn, 2*time.Duration(r.Window), maxLearn)
		c.responses(p+".do", r.Do, "alert", "throttle")
	}
	if b := spec.Breaker; b != nil {
		p := path + ".breaker"
		c.durationIn(p+".open", b.Open, time.Second, maxWatchTime)
		c.durationIn(p+".max_open", b.MaxOpen, time.Duration(b.Open), maxWatchTime)
		c.numberIn(p+".successes", b.Successes, 1, 100)
		c.durationIn(p+".probe_timeout", b.ProbeTimeout, time.Second, maxWatchWindow)
	}
	if t := spec.Throttle; t != nil {
		c.durationIn(path+".throttle.for", t.For, time.Second, maxWatchTime)
	}
}

func (c *checker) shareRule(path, text string, least int, window Duration, do []string) {
	if p := path + ".share"; c.good(p) {
		if _, ok := share(text); !ok {
			c.fault(p, "want a share above 0%% and up to 100%%, got %s; write for example 10%%", c.got(p))
		}
	}
	c.numberIn(path+".min_calls", least, 1, maxWatchCount)
	c.durationIn(path+".window", window, minWatchWindow, maxWatchWindow)
	c.responses(path+".do", do, "alert", "disable", "throttle")
}

// responses checks what a rule does. Not every one can do everything: a tool or a
// caller is no reason to switch an upstream off for all others.
func (c *checker) responses(path string, do []string, known ...string) {
	c.each(path, do, func(p, word string) {
		switch {
		case slices.Contains(known, word):
		case word == "disable" && slices.Contains(known, "throttle"):
			c.fault(p, "one caller is no reason to switch an upstream off for the others; write throttle to hold the caller back")
		case word == "disable":
			c.fault(p, "calls go on with the token that they have, and fail by themselves without one; write disable under auth_failures, which counts those that failed")
		default:
			c.fault(p, "want %s, got %s; pick one", choice(known), c.got(p))
		}
	})
}

// toolsKnown refuses a rule about tools when none is known.
func (c *checker) toolsKnown(path string) {
	if !c.good(path) || !c.good("upstreams") {
		return
	}
	if _, proved := c.limited("*"); proved == 0 {
		c.fault(path, "the rule counts tools, and no upstream has a tools block, without which nobody knows which one a request runs; add one, such as tools: {default: allow}")
	}
}

func (c *checker) numberIn(path string, n, low, high int) {
	if c.good(path) && (n < low || n > high) {
		c.fault(path, "want %d to %d, got %s; correct it", low, high, c.got(path))
	}
}

func (c *checker) durationIn(path string, d Duration, low, high time.Duration) {
	if c.good(path) && (time.Duration(d) < low || time.Duration(d) > high) {
		c.fault(path, "want %s to %s, got %s; correct it", DurationText(low), DurationText(high), c.got(path))
	}
}

func (c *checker) watchAlerts(path string, spec *WatchAlertsSpec) {
	const hint = "set allow_plaintext: true if the network between is yours"
	if h := spec.Webhook; h != nil {
		c.url(path+".webhook.url", h.URL, urlRules{plaintext: h.AllowPlaintext, hint: hint})
	}
	if a := spec.Alertmanager; a != nil {
		if p := path + ".alertmanager.urls"; c.good(p) {
			c.some(p, len(a.URLs))
		}
		c.each(path+".alertmanager.urls", a.URLs, func(p, u string) {
			c.url(p, u, urlRules{plaintext: a.AllowPlaintext, hint: hint})
		})
		for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
			if !isVariable(name) || strings.HasPrefix(name, "__") || slices.Contains(alertLabels(), name) {
				c.fault(join(path+".alertmanager.labels", name), "want the name of a label of yours: letters, digits and _, not %s; correct it", choice(alertLabels()))
			}
		}
	}
	c.url(path+".link", spec.Link, urlRules{plaintext: true, query: true})
}

// alertLabels are the labels that alerts have by themselves.
func alertLabels() []string {
	return []string{"alertname", "rule", "severity", "upstream", "stage", "caller", "tool"}
}

// standard returns what spec points at, or a block with every default.
func standard[T any](c *checker, spec *T) *T {
	if spec == nil {
		spec = new(T)
		c.fill(reflect.ValueOf(spec).Elem())
	}
	return spec
}

// compileWatch is nil without a `watch` block.
func (c *checker) compileWatch() *Watch {
	spec := c.f.Watch
	if spec == nil {
		return nil
	}
	sweep := standard(c, spec.Sweep)
	w := &Watch{
		Sweep:    SweepRule{Tools: sweep.Tools, Window: time.Duration(sweep.Window), Do: responsesOf(sweep.Do)},
		Throttle: standard(c, spec.Throttle).compiled(),
		Alerts:   WatchAlerts{Link: spec.Alerts.Link},
	}
	if h := spec.Alerts.Webhook; h != nil {
		w.Alerts.Webhook = &WatchWebhook{URL: h.URL, CA: c.resolve(h.CA), Secret: h.Secret.Ref}
	}
	if s := spec.Alerts.Slack; s != nil {
		w.Alerts.Slack = &WatchSlack{URL: s.URL.Ref, CA: c.resolve(s.CA)}
	}
	if a := spec.Alerts.Alertmanager; a != nil {
		to := &WatchAlertmanager{Authorization: valueOf(a.Authorization).Ref, CA: c.resolve(a.CA)}
		for _, u := range a.URLs {
			to.URLs = append(to.URLs, strings.TrimSuffix(u, "/")+"/api/v2/alerts")
		}
		for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
			to.Labels = append(to.Labels, Param{name, a.Labels[name]})
		}
		w.Alerts.Alertmanager = to
	}
	return w
}

// compileWatchRules returns the rules about an upstream with the block own.
func (c *checker) compileWatchRules(own *UpstreamWatchSpec) WatchRules {
	if own == nil && c.f.Watch == nil {
		return WatchRules{}
	}
	var all UpstreamWatchSpec
	if c.f.Watch != nil {
		all = *c.f.Watch.rules()
	}
	if own == nil {
		own = &UpstreamWatchSpec{}
	}
	auth, errs := standard(c, or(own.AuthFailures, all.AuthFailures)), standard(c, or(own.Errors, all.Errors))
	endpoint, usage := standard(c, or(own.TokenEndpoint, all.TokenEndpoint)), standard(c, or(own.ToolUsage, all.ToolUsage))
	breaker := standard(c, or(own.Breaker, all.Breaker))
	return WatchRules{
		AuthFailures:  shareOf(auth.Share, auth.MinCalls, auth.Window, auth.Do),
		Errors:        shareOf(errs.Share, errs.MinCalls, errs.Window, errs.Do),
		TokenEndpoint: TokenEndpointRule{Failures: endpoint.Failures, For: time.Duration(endpoint.For), Do: responsesOf(endpoint.Do)},
		ToolUsage: ToolUsageRule{
			Factor: usage.Factor, MinCalls: usage.MinCalls, Window: time.Duration(usage.Window), Learn: time.Duration(usage.Learn), Do: responsesOf(usage.Do),
		},
		Breaker: WatchBreaker{
			Open: time.Duration(breaker.Open), MaxOpen: time.Duration(max(breaker.Open, breaker.MaxOpen)), Successes: breaker.Successes, ProbeTimeout: time.Duration(breaker.ProbeTimeout),
		},
		Throttle: standard(c, or(own.Throttle, all.Throttle)).compiled(),
	}
}

func (t *WatchThrottleSpec) compiled() WatchThrottle {
	return WatchThrottle{Rate: t.Rate, For: time.Duration(t.For)}
}

func shareOf(text string, least int, window Duration, do []string) ShareRule {
	s, _ := share(text)
	return ShareRule{Share: s, MinCalls: least, Window: time.Duration(window), Do: responsesOf(do)}
}

// responsesOf reads a list that may have been left out.
func responsesOf(do []string) WatchResponse {
	if do == nil {
		return WatchResponse{Alert: true}
	}
	return WatchResponse{
		Alert: slices.Contains(do, "alert"), Disable: slices.Contains(do, "disable"), Throttle: slices.Contains(do, "throttle"),
	}
}

// disableNeedsNames warns of a rule that can never switch the upstream off.
func (c *checker) disableNeedsNames(path string, up *UpstreamSpec) {
	rules := c.compileWatchRules(up.Watch)
	if !rules.AuthFailures.Do.Disable && !rules.Errors.Do.Disable {
		return
	}
	for _, name := range c.callersOf(up) {
		if !c.f.Callers[name].Any {
			return
		}
	}
	if len(c.callersOf(up)) > 0 {
		c.warn(path, "anybody may be a caller of kind any, so what such callers see never switches an upstream off; give this one callers that prove who they are, or take disable off")
	}
}
