package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The bounds of limits.service.timeout.
const (
	minLimitTimeout = time.Millisecond
	maxLimitTimeout = time.Second
)

// limits checks the `limits` block.
func (c *checker) limits(spec *LimitsSpec) {
	if p := "limits.rules"; c.good(p) {
		c.some(p, len(spec.Rules))
	}
	names := map[string]int{}
	fleet := false
	for i := range spec.Rules {
		r, p := &spec.Rules[i], limitRule(i)
		fleet = fleet || r.Fleet
		if !c.good(p) {
			continue
		}
		if c.good(p + ".name") {
			if first, twice := names[r.Name]; twice {
				c.fault(p+".name", "rule number %d has this name too; give each its own", first+1)
			}
			names[r.Name] = i
			c.name(p+".name", r.Name, "rule")
		}
		c.limitRule(p, r)
	}
	switch s := spec.Service; {
	case s != nil && c.good("limits.service"):
		c.limitService("limits.service", s)
		if !fleet && len(spec.Rules) > 0 {
			c.warn("limits.service", "no rule asks this service; set fleet: true in one, or remove this")
		}
	case s == nil && fleet && !c.has("limits.service"):
		c.fault("limits.service", "want the service that counts for rules with fleet: true, got nothing; add service: {address: HOST:PORT, on_failure: allow or refuse}")
	}
}

func limitRule(i int) string { return "limits.rules[" + strconv.Itoa(i) + "]" }

// limitRule checks one rule.
func (c *checker) limitRule(path string, r *LimitRuleSpec) {
	for _, list := range []struct {
		key  string
		size int
	}{{"upstreams", len(r.Upstreams)}, {"callers", len(r.Callers)}, {"tools", len(r.Tools)}, {"per", len(r.Per)}} {
		if p := path + "." + list.key; c.good(p) {
			c.some(p, list.size)
		}
	}
	c.limitRate(path, r)
	c.each(path+".callers", r.Callers, func(p, name string) {
		if _, ok := c.f.Callers[name]; !ok {
			c.fault(p, "want the name of one of callers, got %s; add it there or correct the name", c.got(p))
		}
	})
	c.each(path+".per", r.Per, func(p, word string) {
		if known := []string{"caller", "subject", "upstream", "tool"}; !slices.Contains(known, word) {
			c.fault(p, "want %s, got %s; pick one", choice(known), c.got(p))
		}
	})
	c.each(path+".tools", r.Tools, func(p, name string) {
		if !isTarget([]byte(name)) {
			c.fault(p, "want 1 to 2048 bytes without control characters, and without blanks around them, got %s; no tool is called so", c.got(p))
		}
	})
	c.limitUpstreams(path, r)
}

// limitRate checks how much a rule lets pass.
func (c *checker) limitRate(path string, r *LimitRuleSpec) {
	if !r.Fleet && !c.has(path+".rate") && !c.faulty(path) {
		c.fault(path+".rate", "want a rate such as 100/s or 600/min, got nothing; add it")
	}
	if r.Fleet && !c.has(path+".name") && !c.faulty(path) {
		c.fault(path+".name", "want the name by which the service knows this rule, got nothing; add it")
	}
	if p := path + ".burst"; c.good(p) {
		switch {
		case r.Fleet:
			c.fault(p, "the service counts in windows of the rate's unit, without a burst; remove it")
		case r.Burst < 1:
			c.fault(p, "want at least 1, got %s; correct it, or leave it out for the number in rate", c.got(p))
		}
	}
}

// limitUpstreams demands that a rule is about something: a limit that never
// holds is one that somebody relies on.
func (c *checker) limitUpstreams(path string, r *LimitRuleSpec) {
	byTool := len(r.Tools) > 0 || slices.Contains(r.Per, "tool")
	c.each(path+".upstreams", r.Upstreams, func(p, pattern string) {
		about, proved := c.limited(pattern)
		switch {
		case about == 0:
			c.fault(p, "no upstream is called so, got %s; correct the name, or remove it", c.got(p))
		case byTool && proved == 0:
			c.fault(p, "the rule counts tools, and without a tools block of %s nobody knows which one a request runs; add one, such as tools: {default: allow}", c.got(p))
		}
	})
	if !byTool || len(r.Upstreams) > 0 || !c.good("upstreams") {
		return
	}
	if _, proved := c.limited("*"); proved == 0 {
		c.fault(path, "the rule counts tools, and no upstream has a tools block, without which nobody knows which one a request runs; add one, such as tools: {default: allow}")
	}
}

// limited counts the upstreams that fit a pattern, and those of them whose tools
// are proved.
func (c *checker) limited(pattern string) (about, proved int) {
	for name, up := range c.f.Upstreams {
		if !glob(pattern, name) {
			continue
		}
		about++
		if or(up.Tools, c.f.Defaults.Tools) != nil {
			proved++
		}
	}
	return about, proved
}

// limitService checks how the service is reached.
func (c *checker) limitService(path string, s *LimitServiceSpec) {
	c.limitAddress(path+".address", s)
	if p := path + ".domain"; c.good(p) && !isVisible(s.Domain) {
		c.fault(p, "want visible ASCII without blanks, got %s; correct it", c.got(p))
	}
	if p := path + ".timeout"; c.good(p) && (time.Duration(s.Timeout) < minLimitTimeout || time.Duration(s.Timeout) > maxLimitTimeout) {
		c.fault(p, "want a time from %s to %s, got %s; every call of a fleet rule may wait so long", minLimitTimeout, maxLimitTimeout, c.got(p))
	}
	if s.TLS == nil || !c.good(path+".tls") {
		return
	}
	if c.has(path+".tls.certificate") != c.has(path+".tls.private_key") {
		c.fault(path+".tls", "want both certificate and private_key, got one; add the other, or leave both out")
	}
}

func (c *checker) limitAddress(path string, s *LimitServiceSpec) {
	if !c.good(path) {
		return
	}
	if socket, ok := strings.CutPrefix(s.Address, "unix://"); ok {
		if !strings.HasPrefix(socket, "/") || strings.HasSuffix(socket, "/") || len(socket) > maxSocketPath {
			c.fault(path, "want unix:///ABSOLUTE/PATH of at most %d bytes, got %s; write three slashes and the socket's path", maxSocketPath, c.got(path))
		}
		return
	}
	host, port, ok := hostPort(s.Address)
	switch {
	case !ok || port == 0:
		c.fault(path, "want HOST:PORT or unix:///PATH, got %s; write for example 127.0.0.1:8081", c.got(path))
	case !isLoopback(host) && s.TLS == nil && !s.AllowPlaintext:
		c.fault(path, "want TLS for a host that is not loopback, got %s; add tls: {}, or set allow_plaintext: true if the network between is yours", c.got(path))
	}
}

// compileLimits makes limits of a checked block; nil of none.
func (c *checker) compileLimits() *Limits {
	spec := c.f.Limits
	if spec == nil {
		return nil
	}
	l := &Limits{}
	alike := map[string]int{}
	for i := range spec.Rules {
		r := &spec.Rules[i]
		rule := LimitRule{
			Name: r.Name, ID: "name " + r.Name,
			Callers: r.Callers, Tools: r.Tools, upstreams: r.Upstreams,
			PerCaller: slices.Contains(r.Per, "caller"), PerSubject: slices.Contains(r.Per, "subject"),
			PerUpstream: slices.Contains(r.Per, "upstream"), PerTool: slices.Contains(r.Per, "tool"),
			Rate: r.Rate, Burst: r.Burst, Fleet: r.Fleet,
		}
		if r.Name == "" {
			rule.Name = "rule_" + strconv.Itoa(i+1)
			id := fmt.Sprintf("about %q %q %q", r.Upstreams, r.Callers, r.Tools)
			alike[id]++
			rule.ID = id + " " + strconv.Itoa(alike[id])
		}
		if rule.Burst == 0 {
			rule.Burst = r.Rate.Count
		}
		l.Rules = append(l.Rules, rule)
	}
	if s := spec.Service; s != nil {
		l.Service = &LimitService{
			Address: s.Address, Domain: s.Domain, Timeout: s.Timeout, Refuse: s.OnFailure == "refuse", TLS: s.TLS != nil,
		}
		t := valueOf(s.TLS)
		l.Service.CA, l.Service.Certificate, l.Service.PrivateKey = c.resolve(t.CA), c.resolve(t.Certificate), c.resolve(t.PrivateKey)
	}
	return l
}

// rateUnits are the units that a Rate is written in, which are those of the rate
// limit service.
func rateUnits() map[string]time.Duration {
	return map[string]time.Duration{"s": time.Second, "min": time.Minute, "h": time.Hour, "day": 24 * time.Hour}
}

// String writes it as a file does; empty for none.
func (r *Rate) String() string {
	for unit, every := range rateUnits() {
		if r.Every == every {
			return strconv.Itoa(r.Count) + "/" + unit
		}
	}
	return ""
}

// parseRate takes a whole number from 1, a slash and a unit.
func parseRate(text string) (Rate, bool) {
	number, unit, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 31)
	every, known := rateUnits()[unit]
	return Rate{Count: int(n), Every: every}, err == nil && known && n > 0
}
