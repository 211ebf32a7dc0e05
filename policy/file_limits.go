package policy

import "time"

// LimitsSpec is the `limits` block: how much may be called how often. A call over a limit is a 429 `rate_limited` with a `retry-after`.
type LimitsSpec struct {
	// Rules are all held: a call passes when every rule that is about it has room. A rule is about the calls that fit all of `upstreams`, `callers` and `tools`.
	Rules []LimitRuleSpec `yaml:"rules" required:"true"`
	// Service is the rate limit service (envoyproxy/ratelimit) that counts for all replicas. Needed for rules with `fleet`.
	Service *LimitServiceSpec `yaml:"service"`
}

// LimitRuleSpec is one limit.
type LimitRuleSpec struct {
	// Name stands in the metric and, for `fleet`, in the descriptor. Left out, it is `rule_` and the rule's number.
	Name string `yaml:"name"`
	// Upstreams are the upstreams that the rule is about; a `*` stands for any run of characters. Left out, all.
	Upstreams []string `yaml:"upstreams"`
	// Callers are the callers that the rule is about. Left out, all.
	Callers []string `yaml:"callers"`
	// Tools are the tools that the rule is about; a `*` stands for any run of characters. Then it counts calls of these tools alone, of upstreams with `tools`. Left out, it counts every request, and a batch as often as it has messages.
	Tools []string `yaml:"tools"`
	// Per says what is counted apart: `caller`, `subject` (the issuer and subject of a token, else the caller), `upstream` and `tool`. What is not listed is added up. Left out, all that the rule is about shares one limit.
	Per []string `yaml:"per"`
	// Rate is how many calls may pass: a number and `/s`, `/min`, `/h` or `/day`. Only a rule with `fleet` may leave it out: then the configuration of the service says it.
	Rate Rate `yaml:"rate"`
	// Burst is how many calls may pass at once after a rest. Left out, the number in `rate`.
	Burst int `yaml:"burst"`
	// Fleet has the calls of all replicas counted together, by `service`.
	Fleet bool `yaml:"fleet"`
}

// LimitServiceSpec is the rate limit service of `limits`: envoyproxy/ratelimit, or another that speaks envoy.service.ratelimit.v3.
type LimitServiceSpec struct {
	// Address is where it listens for gRPC: HOST:PORT or unix:///PATH.
	Address string `yaml:"address" required:"true"`
	// Domain is the domain of its configuration.
	Domain string `yaml:"domain" default:"envoy-mcp-auth"`
	// Timeout is how long a call waits for it at most.
	Timeout Duration `yaml:"timeout" default:"20ms"`
	// OnFailure says what happens to calls while it cannot be asked: `allow` lets them pass with the limits of this process alone, `refuse` answers 429.
	OnFailure string `yaml:"on_failure" required:"true" enum:"allow,refuse"`
	// AllowPlaintext permits an address that is not loopback without `tls`.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// TLS makes the connection TLS. Write `tls: {}` for the system's authorities.
	TLS *ClientTLSSpec `yaml:"tls"`
}

// ClientTLSSpec is a client's side of TLS. All are paths of PEM files, read at each new connection.
type ClientTLSSpec struct {
	// CA holds the authorities that sign the server's certificate. Left out, the system's.
	CA string `yaml:"ca"`
	// Certificate is the client's certificate chain, for a server that asks for one. Needs `private_key`.
	Certificate string `yaml:"certificate"`
	// PrivateKey is the key of the certificate.
	PrivateKey string `yaml:"private_key"`
}

// Rate is a number of calls in a time: 100/s, 600/min, 1000/h, 5000/day. The zero Rate is none.
type Rate struct {
	// Count is how many calls, above zero.
	Count int
	// Every is the time: a second, a minute, an hour or a day.
	Every time.Duration
}
