// Package refusals remembers the latest refused calls, for the page and /status.
package refusals

import (
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// Kept is how many refusals are remembered.
	Kept = 100
	// keptAlike is how many of them may have the same upstream, caller and reason: a
	// caller that makes up tools cannot push everybody else's refusals out.
	keptAlike = 10
	// most bounds each string that a caller chose, in bytes.
	most = 128
)

// Refusal is one refused call, or several that differ in nothing but time and
// request id. Nothing in it is secret.
type Refusal struct {
	// First and Last are when such a call was refused; Count says how many were.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	Count int       `json:"count"`
	// Upstream and Caller are names of the policy; empty when not found out.
	Upstream string `json:"upstream,omitempty"`
	Caller   string `json:"caller,omitempty"`
	// Subject is of the caller's verified token, and Tool what the request would
	// have run: others chose them. They hold printable characters only.
	Subject string `json:"subject,omitempty"`
	Tool    string `json:"tool,omitempty"`
	// Reason says why; Word is the same for machines.
	Reason policy.Reason `json:"-"`
	Word   string        `json:"reason"`
	// RequestID is of the last one, the caller's to choose.
	RequestID string `json:"request_id,omitempty"`
}

func (r *Refusal) group(o *Refusal) bool {
	return r.Reason == o.Reason && r.Upstream == o.Upstream && r.Caller == o.Caller
}

// Ring holds the latest refusals. Its methods may be called from any number of
// goroutines; Decided and Ended take a lock for a microsecond and never wait for more.
type Ring struct {
	now func() time.Time

	mu   sync.Mutex
	kept []Refusal // in no order
}

// New returns an empty Ring.
func New(now func() time.Time) *Ring {
	return &Ring{now: now, kept: make([]Refusal, 0, Kept)}
}

// Decided implements extproc.Observer.
func (r *Ring) Decided(d *extproc.Decision) {
	if d.Reason == policy.Allowed {
		return
	}
	r.add(&Refusal{
		Upstream: d.Upstream, Caller: d.Caller, Subject: Plain(d.Subject, most), Tool: Plain(d.Tool, most), Reason: d.Reason,
		RequestID: Plain(string(d.RequestID[:min(len(d.RequestID), 64)]), 64),
	})
}

// Ended implements extproc.OutcomeObserver: that an upstream refused our
// credential for good is known only when the call is over.
func (r *Ring) Ended(o *extproc.Outcome) {
	lent := o.Token != "" || o.Refusal == policy.UpstreamRejected.String()                 // a fixed header has no fingerprint
	if o.Decided && lent && o.Rejected() && o.Reason != policy.UpstreamRejected.String() { // that one was decided here
		r.add(&Refusal{
			Upstream: o.Upstream, Caller: o.Caller, Subject: Plain(o.Subject, most), Tool: Plain(o.Tool, most),
			Reason: policy.UpstreamRejected, RequestID: Plain(o.RequestID, 64),
		})
	}
}

func (r *Ring) add(n *Refusal) {
	n.Last, n.Count, n.Word = r.now(), 1, n.Reason.String()
	n.First = n.Last
	r.mu.Lock()
	defer r.mu.Unlock()
	alike, oldest, oldestAlike := 0, 0, 0
	for i := range r.kept {
		k := &r.kept[i]
		if k.Last.Before(r.kept[oldest].Last) {
			oldest = i
		}
		if !k.group(n) {
			continue
		}
		if k.Tool == n.Tool && k.Subject == n.Subject {
			k.Last, k.RequestID = n.Last, n.RequestID
			k.Count++
			return
		}
		if alike == 0 || k.Last.Before(r.kept[oldestAlike].Last) {
			oldestAlike = i
		}
		alike++
	}
	switch {
	case alike >= keptAlike:
		r.kept[oldestAlike] = *n
	case len(r.kept) < Kept:
		r.kept = append(r.kept, *n)
	default:
		r.kept[oldest] = *n
	}
}

// Recent returns what is remembered, newest first.
func (r *Ring) Recent() []Refusal {
	r.mu.Lock()
	all := slices.Clone(r.kept)
	r.mu.Unlock()
	slices.SortStableFunc(all, func(a, b Refusal) int { return b.Last.Compare(a.Last) })
	return all
}

// Plain returns at most limit bytes of a string that others chose, with � for
// what cannot be seen: controls, and marks that turn the direction of the text around it.
func Plain(s string, limit int) string {
	cut := false
	if len(s) > limit {
		end := limit - len("…")
		for end > 0 && !utf8.RuneStart(s[end]) {
			end--
		}
		s, cut = s[:end], true
	}
	s = strings.Map(func(c rune) rune {
		if unicode.IsGraphic(c) {
			return c
		}
		return utf8.RuneError
	}, s)
	if cut {
		s += "…"
	}
	return s
}
