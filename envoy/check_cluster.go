package envoy

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// clusterChecks looks at the clusters that calls with a credential go to.
func (c *checker) clusterChecks() {
	for _, cl := range c.clusters {
		name := cl.get("name").str()
		up := c.upOf[name]
		if !c.guarded[name] && !c.healing[name] && up == nil {
			continue
		}
		options := upstreamOptions(cl)
		if c.guarded[name] || c.healing[name] {
			// Mutations before this chain do not count: a second attempt starts here.
			c.chain(filters(options.get("http_filters")), true, false, up)
		}
		c.destinationOf(cl)
		c.transport(cl, up)
		c.mirrors(options)
		c.retries(options.get("retry_policy"))
		c.retryBudget(cl)
	}
}

// transport checks that the credential travels encrypted, to the right host.
func (c *checker) transport(cl tree, up *target) {
	for _, socket := range c.sockets(cl) {
		c.socket(cl, socket, up)
	}
}

func (c *checker) socket(cl, socket tree, up *target) {
	tls, kind := socket.config()
	if kind != "UpstreamTlsContext" {
		// Where the policy says http on this host, it does not say http to another.
		if (up == nil || up.tls || isLocal(up.host)) && !c.onLoopback(cl) {
			c.report(cl, problem{
				"upstream-plaintext", "calls to this cluster are not encrypted", "The credential can be read on the way", "give it a transport_socket with UpstreamTlsContext",
			})
		}
		return
	}
	auto := cl.get("typed_extension_protocol_options", protocolOptions, "upstream_http_protocol_options", "auto_san_validation").yes()
	c.verified(tls, auto, "upstream-unverified", "The credential goes to whoever answers")
}

// verified checks one side's verification of the other. Envoy verifies nothing by itself.
func (c *checker) verified(tls tree, autoName bool, id, why string) {
	validation := tls.get("common_tls_context", "validation_context")
	combined := tls.get("common_tls_context", "combined_validation_context")
	if combined.ok() {
		validation = combined.get("default_validation_context")
	}
	if sds := tls.get("common_tls_context", "validation_context_sds_secret_config"); sds.ok() {
		return // what a secret server sends cannot be seen here
	}
	if at := validation.get("trust_chain_verification"); at.enum(tlsv3.CertificateValidationContext_TrustChainVerification_name) == "ACCEPT_UNTRUSTED" {
		c.report(at, problem{id, "trust_chain_verification is ACCEPT_UNTRUSTED", why, "remove it"})
	}
	if !validation.get("trusted_ca").ok() && !combined.get("validation_context_sds_secret_config").ok() && !validation.get("ca_certificate_provider_instance").ok() {
		c.report(validation.get("trusted_ca"), problem{id, "there is no trusted_ca, so any certificate will do", why, "set validation_context.trusted_ca"})
	}
	for _, name := range subjectNames(validation) {
		if at := name.get("safe_regex", "regex"); at.str() == ".*" || at.str() == ".+" {
			c.report(at, problem{id, "any name in the certificate will do", why, "set matcher.exact to the host's name"})
		}
	}
	named := validation.get("match_typed_subject_alt_names").ok() || validation.get("match_subject_alt_names").ok() ||
		validation.get("verify_certificate_hash").ok() || validation.get("verify_certificate_spki").ok() || autoName
	if !named {
		c.report(validation.get("match_typed_subject_alt_names"), problem{
			id, "the name in the certificate is not checked", why, "set match_typed_subject_alt_names to the host's name",
		})
	}
}

// subjectNames are the matchers of names, as they are written today and as Istio does.
func subjectNames(validation tree) []tree {
	all := validation.get("match_subject_alt_names").items()
	for _, san := range validation.get("match_typed_subject_alt_names").items() {
		all = append(all, san.get("matcher"))
	}
	return all
}

func isLocal(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// onLoopback reports whether every endpoint of a cluster is on this host.
func (c *checker) onLoopback(cl tree) bool { return allHere(c.endpoints(cl)) }

// onLoopback is that of a cluster whose endpoints are its own.
func onLoopback(cl tree) bool { return allHere(cl.get("load_assignment")) }

func allHere(endpoints tree) bool {
	addresses := 0
	away := false
	endpoints.walk(func(t tree) bool {
		if t.get("path").ok() && t.get("path").str() != "" {
			addresses++
		}
		if a := t.get("socket_address", "address"); a.ok() {
			addresses++
			away = away || !isLocal(a.str())
		}
		return true
	})
	return addresses > 0 && !away
}

// mirrors checks for copies of requests (L6): wherever the list stands.
func (c *checker) mirrors(at tree) {
	if m := at.get("request_mirror_policies"); len(m.items()) > 0 {
		c.report(m, problem{
			"mirrored", "requests are copied to another cluster", "The copy may carry the credential, and a tool runs twice", "remove request_mirror_policies",
		})
	}
}

// safeRetries are the conditions under which a request cannot have reached the upstream.
func safeRetries() []string {
	return []string{"connect-failure", "refused-stream", "reset-before-request", "http3-post-connect-failure", "retriable-status-codes", ""}
}

// retries checks a retry policy, wherever it stands.
func (c *checker) retries(policy tree) {
	if !policy.ok() {
		return
	}
	words := retryWords(policy)
	for _, w := range words {
		if !slices.Contains(safeRetries(), w) {
			c.report(policy.get("retry_on"), problem{
				"retry-replays", fmt.Sprintf("retry_on %q repeats calls that the upstream may have carried out", w), "A tool call may not be safe to run twice",
				"retry on 401 alone: retriable-status-codes with retriable_status_codes: [401]",
			})
			break
		}
	}
	if slices.Contains(words, "retriable-status-codes") {
		for _, code := range policy.get("retriable_status_codes").items() {
			if code.str() != "401" {
				c.report(code, problem{
					"retry-replays", "a call is repeated on status " + code.str(), "The upstream may have carried it out; only a 401 says that it did not",
					"retriable_status_codes: [401]",
				})
			}
		}
	}
	if n, ok := policy.get("num_retries").number(); ok && n > 1 {
		c.report(policy.get("num_retries"), problem{
			"retry-too-often", fmt.Sprintf("num_retries is %d", n), "A second new token cannot heal what the first did not, and each attempt may cost the authorization server a request", "set num_retries: 1",
		})
	}
}

// retryBudget checks that a revoked token heals for all calls at once.
func (c *checker) retryBudget(cl tree) {
	for _, t := range cl.get("circuit_breakers", "thresholds").items() {
		if p := t.get("priority").enum(corev3.RoutingPriority_name); p != "" && p != "DEFAULT" {
			continue
		}
		if n, ok := t.get("max_retries").number(); ok && n >= 100 || t.get("retry_budget").ok() {
			return
		}
	}
	c.report(cl.get("circuit_breakers"), problem{
		"few-retries", "Envoy allows 3 retries at once by default", "When a token that many calls use is revoked, most of them would see the 401", "set circuit_breakers.thresholds: [{max_retries: 16384}]",
	})
}

// processChecks looks at the clusters that our filters call, and at the process.
func (c *checker) processChecks() {
	for name, caller := range c.processorNames {
		cl, ok := c.cluster(name)
		if !ok {
			c.report(caller, problem{
				"no-processor-cluster", fmt.Sprintf("ext_proc calls cluster %q, which is not defined here", name),
				"Every call fails, and Envoy versions before 1.40 let such calls through", "add the cluster, as `render envoy` does",
			})
			continue
		}
		c.rules(cl, processorRules())
		c.processorProtocol(cl)
		c.processorTransport(cl)
	}
	c.admin()
	c.version()
}

func processorRules() []rule {
	return []rule{
		{[]string{"health_checks"}, present, problem{
			"no-health-check", "the processor is not health-checked", "Calls go on to a server that is stopping", "add health_checks with grpc_health_check: {}",
		}},
		{[]string{"outlier_detection"}, present, problem{
			"no-outlier-detection", "a failing processor is not passed over", "With two of them, half the calls go on failing", "add outlier_detection",
		}},
		{[]string{"connect_timeout"}, func(t tree) bool { d, ok := t.duration(); return ok && d <= 250*time.Millisecond }, problem{
			"connect-timeout", "connect_timeout is over 250 ms (the default is 5 s)", "A lost processor costs each call that long before another is tried", "set connect_timeout: 0.25s",
		}},
		{[]string{"circuit_breakers", "thresholds"}, func(t tree) bool {
			return slices.ContainsFunc(t.items(), func(i tree) bool { n, ok := i.get("max_requests").number(); return ok && n > 1024 })
		}, problem{
			"processor-limit", "at most 1024 calls are decided at once, Envoy's default", "The next one is refused", "set circuit_breakers.thresholds: [{max_requests: 16384}] or what you expect at once",
		}},
	}
}

func (c *checker) processorProtocol(cl tree) {
	h2 := upstreamOptions(cl).get("explicit_http_config", "http2_protocol_options")
	if !h2.ok() {
		h2 = cl.get("http2_protocol_options")
	}
	if !h2.ok() {
		c.report(cl, problem{"processor-not-http2", "the processor's cluster does not speak HTTP/2", "gRPC needs it: every call fails", "set explicit_http_config.http2_protocol_options"})
		return
	}
	if !h2.get("connection_keepalive").ok() {
		c.report(h2.get("connection_keepalive"), problem{
			"no-keepalive", "a connection that died silently is not noticed", "Calls hang on it until message_timeout", "set connection_keepalive: {interval: 30s, timeout: 5s}",
		})
	}
}

func (c *checker) processorTransport(cl tree) {
	for _, socket := range c.sockets(cl) {
		c.processorSocket(cl, socket)
	}
}

func (c *checker) processorSocket(cl, socket tree) {
	tls, kind := socket.config()
	switch {
	case kind == "UpstreamTlsContext":
		c.verified(tls, false, "processor-unverified", "Callers' credentials are sent to whoever answers, and its word lets calls pass")
	case !c.onLoopback(cl):
		c.report(cl, problem{
			"processor-plaintext", "the processor is on another host and the way there is not encrypted", "Callers' credentials and our tokens can be read on the way",
			"use mutual TLS, or a Unix socket on the same host",
		})
	}
}

func (c *checker) admin() {
	at := c.bootstrap.get("admin", "address", "socket_address", "address")
	ip, err := netip.ParseAddr(at.str())
	if at.ok() && at.str() != "localhost" && (err != nil || !ip.IsLoopback()) {
		c.report(at, problem{
			"admin-exposed", "Envoy's admin interface listens on " + at.str(), "It shows the configuration and can stop the Envoy, without asking who calls", "bind it to 127.0.0.1 or leave it out",
		})
	}
}

// version reads what a running Envoy says of itself in a dump.
func (c *checker) version() {
	at := c.bootstrap.get("node", "user_agent_build_version", "version")
	if !at.ok() {
		return
	}
	part := func(key string) uint64 { n, _ := at.get(key).number(); return n }
	got := [3]uint64{part("major_number"), part("minor_number"), part("patch")}
	if slices.Compare(got[:], []uint64{1, 38, 4}) < 0 {
		c.report(at, problem{
			"envoy-too-old", fmt.Sprintf("this is Envoy %d.%d.%d", got[0], got[1], got[2]),
			"Before 1.38.4, path parameters could get past path rules (CVE-2026-73511, -73551, -73553)", "run 1.38.4 or later",
		})
	}
}
