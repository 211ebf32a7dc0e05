// Package alert tells people and machines what the watch has found: by a signed
// webhook, to a Slack-compatible chat, and to Alertmanager. All of it happens off
// the request path.
package alert

import "time"

// Severity says how soon somebody should look.
type Severity string

// The severities.
const (
	// Warning is for the next working hour.
	Warning Severity = "warning"
	// Critical is for now: calls fail, or are refused.
	Critical Severity = "critical"
)

// Alert is one finding of the watch. Nothing in it is secret. Rule, Upstream,
// Stage, Caller and Tool say what it is about: while it lasts, there is one Alert
// of them.
type Alert struct {
	// Rule is the key of the rule in the policy, such as auth_failures.
	Rule string `json:"rule"`
	// Upstream is empty for a rule about all upstreams.
	Upstream string `json:"upstream,omitempty"`
	// Stage is where authentication failed: caller or credential. Empty for other rules.
	Stage string `json:"stage,omitempty"`
	// Caller is the caller of the policy, with the subject of its token when it has one.
	Caller string `json:"caller,omitempty"`
	// Tool is as in extproc.Decision.
	Tool string `json:"tool,omitempty"`

	Severity Severity `json:"severity"`
	// Since is when it began, Until when it ended; Until is zero while it lasts.
	Since time.Time `json:"since"`
	Until time.Time `json:"until,omitzero"`
	// Summary says in a sentence what happens, with the figures.
	Summary string `json:"summary"`
	// Figures are the same figures for machines.
	Figures map[string]float64 `json:"figures,omitempty"`
	// Done says what was done about it besides telling: disabled, throttled.
	Done []string `json:"done,omitempty"`
	// Runbook says what to do.
	Runbook string `json:"runbook"`
}

// Subject is what an alert is about. Two alerts of one subject are the same alert.
type Subject struct{ Rule, Upstream, Stage, Caller, Tool string }

// Subject returns what the alert is about.
func (a *Alert) Subject() Subject { return Subject{a.Rule, a.Upstream, a.Stage, a.Caller, a.Tool} }
