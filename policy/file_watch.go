package policy

// WatchSpec is the `watch` block: rules about how calls fare, held once a second, and what happens when one is broken. `watch: {}` has them all, as their defaults say, and tells. Left out, what happens is shown on /status and nothing more. See docs/watch.md.
type WatchSpec struct {
	// AuthFailures is about calls that fail authentication, at any stage.
	AuthFailures *WatchAuthFailuresSpec `yaml:"auth_failures"`
	// Errors is about calls that an upstream fails at otherwise.
	Errors *WatchErrorsSpec `yaml:"errors"`
	// TokenEndpoint is about the requests for an upstream's tokens.
	TokenEndpoint *WatchTokenEndpointSpec `yaml:"token_endpoint"`
	// ToolUsage is about a tool that is called far more often than it used to be.
	ToolUsage *WatchToolUsageSpec `yaml:"tool_usage"`
	// Sweep is about one caller that runs many different tools, of all upstreams together.
	Sweep *WatchSweepSpec `yaml:"sweep"`
	// Breaker says how an upstream is switched off by `disable`, and on again.
	Breaker *WatchBreakerSpec `yaml:"breaker"`
	// Throttle says what is left to a caller or an upstream by `throttle`.
	Throttle *WatchThrottleSpec `yaml:"throttle"`
	// Alerts says who is told. Left out, the log, the metrics and /status.
	Alerts WatchAlertsSpec `yaml:"alerts"`
}

// UpstreamWatchSpec is the `watch` block of an upstream: what it does not set is as in the `watch` block of the file, or as the defaults say when there is none.
type UpstreamWatchSpec struct {
	// AuthFailures is about calls that fail authentication, at any stage.
	AuthFailures *WatchAuthFailuresSpec `yaml:"auth_failures"`
	// Errors is about calls that the upstream fails at otherwise.
	Errors *WatchErrorsSpec `yaml:"errors"`
	// TokenEndpoint is about the requests for the upstream's tokens.
	TokenEndpoint *WatchTokenEndpointSpec `yaml:"token_endpoint"`
	// ToolUsage is about a tool that is called far more often than it used to be.
	ToolUsage *WatchToolUsageSpec `yaml:"tool_usage"`
	// Breaker says how the upstream is switched off by `disable`, and on again.
	Breaker *WatchBreakerSpec `yaml:"breaker"`
	// Throttle says what is left to a caller or the upstream by `throttle`.
	Throttle *WatchThrottleSpec `yaml:"throttle"`
}

// WatchAuthFailuresSpec is the rule about calls that fail authentication: because the caller does, because no token can be had, or because the upstream answers 401 or 403. A 429 is none of these.
type WatchAuthFailuresSpec struct {
	// Share is the share of calls above which the rule is broken: a percentage. It is held for all stages together and, of the calls that got that far, for the upstream's own credential.
	Share string `yaml:"share" default:"10%"`
	// MinCalls is how many calls there must be in the window before a share means anything.
	MinCalls int `yaml:"min_calls" default:"20"`
	// Window is how far back calls count: 10s to 1h, to the ten seconds.
	Window Duration `yaml:"window" default:"5m"`
	// Do lists what happens: `alert`, `disable` the upstream, `throttle` it. `disable` and `throttle` take more than half of those who called, and two of them unless the upstream has one `key` or `mtls` caller alone; callers without a valid proof of who they are can bring about the alert and nothing else. Left out, `alert`; `[]` turns the rule off.
	Do []string `yaml:"do"`
}

// WatchErrorsSpec is the rule about errors of an upstream: 5xx, connections that break, and callers that leave after 10 s without an answer.
type WatchErrorsSpec struct {
	// Share is the share of calls above which the rule is broken: a percentage.
	Share string `yaml:"share" default:"25%"`
	// MinCalls is how many calls there must be in the window before a share means anything.
	MinCalls int `yaml:"min_calls" default:"20"`
	// Window is how far back calls count: 10s to 1h, to the ten seconds.
	Window Duration `yaml:"window" default:"5m"`
	// Do lists what happens: `alert`, `disable` the upstream, `throttle` it. The last two take as many callers as under auth_failures. Left out, `alert`; `[]` turns the rule off.
	Do []string `yaml:"do"`
}

// WatchTokenEndpointSpec is the rule about a token endpoint that fails, while calls may still go on with the token that they have.
type WatchTokenEndpointSpec struct {
	// Failures is how many requests in a row have to fail.
	Failures int `yaml:"failures" default:"5"`
	// For is for how long they have to fail, at least two of them. The rule is broken by whichever comes first.
	For Duration `yaml:"for" default:"1m"`
	// Do lists what happens: `alert`. What calls see of it is the business of `auth_failures`. Left out, `alert`; `[]` turns the rule off.
	Do []string `yaml:"do"`
}

// WatchToolUsageSpec is the rule about tools that are called far more often than they used to be. Only upstreams with `tools` know what is called.
type WatchToolUsageSpec struct {
	// Factor is how many times as often as usual.
	Factor int `yaml:"factor" default:"10"`
	// MinCalls is how many calls of the tool there must be in the window.
	MinCalls int `yaml:"min_calls" default:"50"`
	// Window is how far back calls count: 1m to 1h.
	Window Duration `yaml:"window" default:"5m"`
	// Learn is for how long a tool is watched before the rule holds for it: at least two windows. What is usual is an average over this time, in which older calls count less and less.
	Learn Duration `yaml:"learn" default:"24h"`
	// Do lists what happens: `alert`, `throttle` the caller who makes more than half of the calls, at this upstream. Left out, `alert`; `[]` turns the rule off.
	Do []string `yaml:"do"`
}

// WatchSweepSpec is the rule about a caller that runs many different tools: as somebody does who looks for what a stolen key is good for. A caller is a person where a token says who that is. Callers of kind `any` are left out.
type WatchSweepSpec struct {
	// Tools is how many different ones, refused ones included: 2 to 500.
	Tools int `yaml:"tools" default:"50"`
	// Window is how far back they count: 10s to 1h.
	Window Duration `yaml:"window" default:"10m"`
	// Do lists what happens: `alert`, `throttle` the caller at all upstreams. Left out, `alert`; `[]` turns the rule off.
	Do []string `yaml:"do"`
}

// WatchBreakerSpec says how an upstream is switched off and on again. While it is off, calls get 503 `upstream_disabled` with a `retry-after`; then one call at a time is let through, until enough of them have succeeded.
type WatchBreakerSpec struct {
	// Open is how long the upstream is off at first. Each probe that fails doubles it.
	Open Duration `yaml:"open" default:"30s"`
	// MaxOpen is the most that doubling leads to.
	MaxOpen Duration `yaml:"max_open" default:"10m"`
	// Successes is how many probes in a row have to succeed.
	Successes int `yaml:"successes" default:"3"`
	// ProbeTimeout is how long the end of a probe is waited for before another call is let through.
	ProbeTimeout Duration `yaml:"probe_timeout" default:"10s"`
}

// WatchThrottleSpec says what is left to a caller or an upstream. What is beyond gets 429 `rate_limited` with a `retry-after`.
type WatchThrottleSpec struct {
	// Rate is how many calls may pass.
	Rate Rate `yaml:"rate" default:"1/s"`
	// For is how long that lasts, counted from when the rule was last broken.
	For Duration `yaml:"for" default:"5m"`
}

// WatchAlertsSpec says who is told of what the rules find, off the request path, besides the log.
type WatchAlertsSpec struct {
	// Webhook gets each alert when it begins and when it is over, as signed JSON.
	Webhook *WatchWebhookSpec `yaml:"webhook"`
	// Slack gets the same as a message, in the format of Slack's incoming webhooks, which Mattermost and others take too.
	Slack *WatchSlackSpec `yaml:"slack"`
	// Alertmanager gets alerts by its API (version 2), again and again while they last.
	Alertmanager *WatchAlertmanagerSpec `yaml:"alertmanager"`
	// Link is a URL that alerts lead to, such as that of a dashboard.
	Link string `yaml:"link"`
}

// WatchWebhookSpec is a receiver of signed alerts.
type WatchWebhookSpec struct {
	// URL is where alerts are posted. It is no secret: what proves where they are from is the signature.
	URL string `yaml:"url" required:"true"`
	// Secret is the key of the signature: at least 32 characters, or a key as Standard Webhooks writes it (`whsec_…`).
	Secret SecretSpec `yaml:"secret" required:"true"`
	// AllowPlaintext permits an http URL that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// CA is the path of a PEM file with the authorities that sign the receiver's certificate. Left out, the system's.
	CA string `yaml:"ca"`
}

// WatchSlackSpec is a chat.
type WatchSlackSpec struct {
	// URL is the incoming webhook's URL: whoever has it can post, so it is a secret. It starts with https://, or http:// for loopback.
	URL SecretSpec `yaml:"url" required:"true"`
	// CA is the path of a PEM file with the authorities that sign the chat's certificate. Left out, the system's.
	CA string `yaml:"ca"`
}

// WatchAlertmanagerSpec is Alertmanager, or what takes its API.
type WatchAlertmanagerSpec struct {
	// URLs are the base URLs, such as http://127.0.0.1:9093: all members of a cluster, since each must get every alert.
	URLs []string `yaml:"urls" required:"true"`
	// Authorization is the value of that header, such as `Bearer ${TOKEN}`. Left out, none is sent.
	Authorization *SecretSpec `yaml:"authorization"`
	// Labels are added to each alert, such as `cluster: eu1`.
	Labels map[string]string `yaml:"labels"`
	// AllowPlaintext permits an http URL that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// CA is the path of a PEM file with the authorities that sign the certificate. Left out, the system's.
	CA string `yaml:"ca"`
}
