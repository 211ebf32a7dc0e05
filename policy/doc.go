// Package policy reads the policy file and decides.
//
// A policy file names the upstreams behind an Envoy, who may call them, which
// credential each one is lent, and which cookies and headers of the caller go
// on. Parse turns it into a Set:
//
//	set, err := policy.Parse("policy.yaml", b, os.LookupEnv)
//
// A Set answers, for one request at a time, the questions of the request path:
// Lookup (which upstream), Screen (is the request well formed, what did it
// bring), Authorize (who calls), and Cookies.Filter (what goes on). All of
// them are pure: no network, no clock, no protobuf, and no allocation once the
// scratch space they are handed has grown. A Set is immutable, so any number of
// goroutines may use it at once.
//
// Every doubt is a refusal: the zero value of each setting is the safe one, and
// each refusal has a Reason.
package policy
