// Package litellmconfig reads a configuration of LiteLLM and writes the policy
// that does what its mcp_servers do, and the configuration with which LiteLLM
// then calls them through Envoy.
//
//	res, err := litellmconfig.Convert("config.yaml", text, litellmconfig.Options{Env: os.LookupEnv})
//	res.Policy, res.LiteLLM, res.Notes, res.Variables
//
// What is known here of LiteLLM is what its version 1.106.2 reads from the file.
// No secret goes on: where the file holds one, both results name a variable.
package litellmconfig

import (
	"errors"
	"fmt"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Options are what the file does not say.
type Options struct {
	// Env looks up variables, as os.LookupEnv does. Only those are asked for that
	// hold a url of the file: their path becomes part of LiteLLM's new url.
	Env func(string) (string, bool)
	// KeySum is the SHA-256 of the key by which LiteLLM is known, in lower-case
	// hex. Empty means that the policy takes it from MCP_AUTH_KEY_SHA256.
	KeySum string
	// Cookies are the names of the cookies that servers get to which LiteLLM
	// passes its callers' cookies on.
	Cookies []string
	// Listen is the policy's server.listen; empty means its default.
	Listen string
	// EnvoyListen is the policy's envoy.listen; empty means its default.
	EnvoyListen string
	// EnvoyURL is the policy's envoy.public_url; empty means its default.
	EnvoyURL string
}

// KeyVariable is the variable from which LiteLLM takes the key by which it is
// known, and SumVariable the one with the key's SHA-256 for the policy.
const (
	KeyVariable = "MCP_AUTH_KEY_LITELLM"
	SumVariable = "MCP_AUTH_KEY_SHA256"
)

// Result is what Convert makes of a file.
type Result struct {
	// Policy is the policy file. It has no faults once its variables are set.
	Policy []byte
	// LiteLLM is the new configuration of LiteLLM: mcp_servers anew, all else as it was.
	LiteLLM []byte
	// Servers is how many servers are behind Envoy now, and Direct how many are not.
	Servers, Direct int
	// Notes say what was not carried over and what needs a look, in line order.
	Notes []Note
	// Variables are what has to be set, in the order of the file.
	Variables []Variable
}

// Lost reports whether anything was not carried over.
func (r *Result) Lost() bool {
	for i := range r.Notes {
		if r.Notes[i].Lost {
			return true
		}
	}
	return false
}

// converter is one run of Convert.
type converter struct {
	file string
	opt  Options

	notes    []Note
	vars     []Variable
	taken    map[string]bool   // names of variables
	upstream map[string]bool   // names of upstreams
	aliases  map[string]string // LiteLLM's names to their aliases in litellm_settings
	literals []literal
	ports    int // of listeners beside the main one
	pinned   bool
	nodes    int // read and copied so far
}

// literal is a secret that the file holds.
type literal struct {
	value, variable, how string
	forLiteLLM           bool
}

var errNothing = errors.New("none of its MCP servers can be behind Envoy as they are written; mend what the report names and run again")

// Convert converts the file of that name. The error of a file that cannot be
// converted comes with the Result as far as it got, so that its notes tell why.
// No error and no note holds the value of a secret.
func Convert(name string, b []byte, opt Options) (*Result, error) {
	c := &converter{file: name, opt: opt, taken: variablesOf(b), upstream: map[string]bool{}}
	c.taken[KeyVariable], c.taken[SumVariable] = true, true
	doc, err := parse(b)
	if err != nil {
		return &Result{}, fmt.Errorf("%s: %w", name, err)
	}
	servers, err := c.servers(doc)
	if err != nil {
		return c.result(nil), fmt.Errorf("%s: %w", name, err)
	}
	set, text, err := c.settle(servers)
	res := c.result(servers)
	if err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	res.Policy = text
	if res.LiteLLM, err = c.litellm(b, doc, servers, set); err != nil {
		return res, fmt.Errorf("%s: the new configuration for LiteLLM: %w", name, err)
	}
	c.residue(res.LiteLLM)
	res.Notes, res.Variables = c.sortedNotes(), c.variables(servers)
	return res, nil
}

func (c *converter) result(servers []*server) *Result {
	res := &Result{Notes: c.sortedNotes(), Variables: c.variables(servers)}
	for _, s := range servers {
		if s.direct {
			res.Direct++
		} else {
			res.Servers++
		}
	}
	return res
}

// settle writes the policy until it has no faults: a server that the policy
// would refuse stays where it is, and its faults are notes.
func (c *converter) settle(servers []*server) (*policy.Set, []byte, error) {
	for range len(servers) + 1 {
		if all(servers, func(s *server) bool { return s.direct }) {
			return nil, nil, errNothing
		}
		text := c.policy(servers)
		set, err := policy.Parse("policy.yaml", text, c.madeUp(servers))
		if err == nil {
			return set, text, nil
		}
		var faults policy.Faults
		if !errors.As(err, &faults) || !c.refused(servers, faults) {
			return nil, nil, fmt.Errorf("the policy would have faults: %w", err)
		}
	}
	return nil, nil, errNothing
}

// refused leaves the servers alone that faults are about. It reports whether there were any.
func (c *converter) refused(servers []*server, faults policy.Faults) bool {
	found := false
	for _, s := range servers {
		at := "upstreams." + s.name
		for _, f := range faults {
			if s.direct || f.Path != at && !strings.HasPrefix(f.Path, at+".") {
				continue
			}
			found = true
			c.stays(s, s.line, s.path(), "the policy would refuse it: "+f.Text)
		}
	}
	return found
}

// madeUp is an environment in which every variable is set: what the policy does
// with a secret does not depend on it, and the real one is no business of ours.
func (c *converter) madeUp(servers []*server) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if name == SumVariable {
			return strings.Repeat("5e", 32), true
		}
		for _, s := range servers {
			if s.urlVariable == name || s.tokenURLVariable == name {
				return c.lookup(name)
			}
		}
		return "made-up", true
	}
}

func (c *converter) lookup(name string) (string, bool) {
	if c.opt.Env == nil {
		return "", false
	}
	v, ok := c.opt.Env(name)
	return strings.TrimSpace(v), ok && strings.TrimSpace(v) != ""
}

func all[T any](list []T, yes func(T) bool) bool {
	for _, x := range list {
		if !yes(x) {
			return false
		}
	}
	return true
}
