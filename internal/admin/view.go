package admin

import (
	"slices"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
)

// View is what the page shows. Nothing in it may be secret: whoever reaches the
// listener reads it.
type View struct {
	// At is when this was so.
	At time.Time
	// Version is that of the program, Began when it was started.
	Version string
	Began   time.Time
	// NotReady is what /readyz waits for, empty when ready.
	NotReady string
	Policy   Policy
	// Upstreams are all upstreams of the policy, in any order.
	Upstreams []Upstream
	// Refusals are the latest, newest first.
	Refusals []refusals.Refusal
	// Alerts are the active ones.
	Alerts []Alert
	// Parts are what else this process stands on: audit, shared cache, issuers,
	// secrets. Only those that are in use.
	Parts []Part
}

// Policy is the policy file and its reloads.
type Policy struct {
	File string
	// Hash is the start of the SHA-256 of the file in force, in hex.
	Hash   string
	Loaded time.Time
	// Error is why the file as it is now could not be put in force.
	Error    string
	Warnings []string
	// Reloads are the latest attempts, newest first.
	Reloads []Reload
}

// Reload is one attempt to put the policy file in force, or several that failed alike.
type Reload struct {
	At    time.Time `json:"at"`
	Count int       `json:"count"`
	Hash  string    `json:"hash,omitempty"`
	Error string    `json:"error,omitempty"`
}

// Upstream is one upstream of the policy.
type Upstream struct {
	Name, URL, Cluster string
	// Callers are those of the policy, Credential is oauth2, header or none.
	Callers    []string
	Credential string
	// Token is nil for an upstream without one.
	Token *Token
	// Breaker is nil when none is configured.
	Breaker *Breaker
	// Traffic is nil while nothing is known.
	Traffic *Traffic
	// Findings are where the upstream's own metadata and the policy disagree.
	Findings []string
	// Rules counts the tool rules, and Proof is what proves a tool; both zero without any.
	Rules int
	Proof string
}

// Token is the state of an upstream's access token.
type Token struct {
	Endpoint, Issuer, AuthMethod, Grant, ClientID string
	Scopes                                        []string
	Resource, Audience, Granted                   string
	// Fingerprint is that of the audit line.
	Fingerprint     string
	Expiry, Refresh time.Time
	Lifetime        time.Duration
	// Tried and Ready are whether one was asked for, and whether one can be lent.
	Tried, Ready, Stale bool
	// UserBound is whether each caller has one of its own, Users how many have.
	UserBound bool
	Users     int
	Failures  int
	LastError string
	NextTry   time.Time
}

// Breaker is whether the watch lets calls through.
type Breaker struct {
	// State is closed, open, half_open, or disabled when the policy says so.
	State string
	Since time.Time
	// Until is when an open one lets a probe through.
	Until time.Time
	Why   string
	// Opened is how often it opened since it was last closed, and Successes how many
	// probes succeeded of the Needed ones.
	Opened, Successes, Needed int
}

// Traffic is what happened to the calls of an upstream.
type Traffic struct {
	// Window is the time that the counts are of.
	Window time.Duration
	// Calls ended in the window; Failed of them with an error of the upstream or
	// before it, AuthFailed with a failure of authentication, Refused by us.
	Calls, Failed, AuthFailed, Refused uint64
	P50, P99                           time.Duration
	// Step is the time between the points, which end now; oldest first.
	Step   time.Duration
	Points []Point
}

// Point is one step of a chart.
type Point struct {
	Calls, Failed uint64
	P50, P99      time.Duration
}

// Alert is one active alert of the watch.
type Alert struct {
	Since time.Time
	// Upstream and Caller are whom it is about; either may be empty.
	Upstream, Caller string
	// Rule is its name, Text what was seen, Response what was done.
	Rule, Text, Response string
}

// Part is something that this process stands on.
type Part struct {
	// Name is such as "Audit"; ID is a word for the anchor.
	Name, ID string
	State    State
	// Word is the state in a word, such as up.
	Word string
	// Facts are shown as a list, in order.
	Facts []Fact
	// Trouble says what is wrong and Do what helps; empty when State is OK.
	Trouble, Do string
}

// Fact is one line of a Part. At, when not zero, is shown in place of Value.
type Fact struct {
	Name, Value string
	At          time.Time
}

// State is how well something is, worst first.
type State uint8

// The states.
const (
	// Bad: calls fail.
	Bad State = iota
	// Warn: calls go on, and something needs a look.
	Warn
	// Starting: not known yet.
	Starting
	// OK is as it should be.
	OK
)

// String returns the word of the query, such as bad.
func (s State) String() string {
	switch s {
	case Bad:
		return "bad"
	case Warn:
		return "warn"
	case Starting:
		return "starting"
	case OK:
		return "ok"
	}
	return ""
}

// Word returns the word for the reader.
func (s State) Word() string {
	switch s {
	case Bad:
		return "Failing"
	case Warn:
		return "Degraded"
	case Starting:
		return "Starting"
	case OK:
		return "Healthy"
	}
	return ""
}

// judge says how well an upstream is, and why it is not.
func (u *Upstream) judge(alerts []Alert) (state State, why []string) {
	state = OK
	worse := func(s State, text string) {
		state = min(state, s)
		if !slices.ContainsFunc(why, func(said string) bool { return strings.Contains(said, text) }) {
			why = append(why, text)
		}
	}
	if b := u.Breaker; b != nil {
		switch b.State {
		case "open":
			worse(Bad, "Switched off: "+orElse(b.Why, "too many calls failed"))
		case "half_open":
			worse(Warn, "Trying whether it works again: "+orElse(b.Why, "too many calls had failed"))
		case "disabled":
			worse(Warn, "Switched off by the policy: calls are refused with upstream_disabled")
		}
	}
	u.judgeToken(worse)
	for _, a := range alerts {
		if a.Upstream == u.Name {
			worse(Warn, a.Text)
		}
	}
	for _, f := range u.Findings {
		worse(Warn, f)
	}
	return state, why
}

func (u *Upstream) judgeToken(worse func(State, string)) {
	t := u.Token
	switch {
	case t == nil:
	case t.Stale:
		worse(Warn, "An expired token is being lent (stale_grace): "+t.LastError)
	case t.LastError != "" && (t.Ready || t.UserBound):
		worse(Warn, t.LastError)
	case t.LastError != "":
		worse(Bad, t.LastError)
	case !t.Tried && !t.UserBound:
		worse(Starting, "No token was asked for yet")
	}
}

func orElse(s, other string) string {
	if strings.TrimSpace(s) == "" {
		return other
	}
	return s
}
