package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// The bounds of max_body. A body is held whole while it is read, by Envoy too.
const (
	minBody = 1 << 10
	// MaxBody is the largest body that any policy lets be read, in bytes.
	MaxBody = 16 << 20
	// maxFiltered is the most that Envoy's mcp filter can be told to read.
	maxFiltered = 10 << 20
)

// tools checks what a block says by itself. Callers are those of the upstream,
// nil for the block of defaults.
func (c *checker) tools(path string, spec *ToolsSpec, callers []string) {
	if spec == nil || !c.good(path) {
		return
	}
	if p := path + ".max_body"; c.good(p) {
		switch {
		case spec.MaxBody < minBody || spec.MaxBody > MaxBody:
			c.fault(p, "want a size from 1KiB to 16MiB, got %s; correct it", c.got(p))
		case Proof(spec.Proof) == ProofMCPFilter && spec.MaxBody > maxFiltered:
			c.fault(p, "Envoy's mcp filter reads at most 10MiB, got %s; correct it, or choose another proof", c.got(p))
		case Proof(spec.Proof) == ProofHeaders:
			c.fault(p, "no body is read with proof: headers; remove it, or choose another proof")
		}
	}
	for i := range spec.Rules {
		if p := toolRule(path, i); c.good(p) {
			c.toolRule(p, &spec.Rules[i])
		}
	}
	for _, scope := range slices.Sorted(maps.Keys(spec.Implies)) {
		p := join(path+".implies", scope)
		if !isScope(scope) {
			c.fault(p, "want one scope of visible ASCII without \" and \\ (RFC 6749 §3.3) as the key; correct it")
		}
		c.some(p, len(spec.Implies[scope]))
		c.each(p, spec.Implies[scope], c.scope)
	}
	c.toolWarnings(path, spec)
	c.unreachable(path, spec.Rules, callers)
}

func toolRule(path string, i int) string { return path + ".rules[" + strconv.Itoa(i) + "]" }

// toolRule checks one rule.
func (c *checker) toolRule(path string, r *ToolRuleSpec) {
	for _, list := range []struct {
		key  string
		size int
	}{{"names", len(r.Names)}, {"methods", len(r.Methods)}, {"scopes", len(r.Scopes)}, {"callers", len(r.Callers)}} {
		// Some would read it as none, others as all.
		if p := path + "." + list.key; c.good(p) {
			c.some(p, list.size)
		}
	}
	if !c.has(path+".names") && !c.has(path+".methods") && !c.faulty(path) {
		c.fault(path+".names", "want the names of the tools that the rule is about, got nothing; add them, or write [\"*\"] for all")
	}
	c.each(path+".names", r.Names, func(p, name string) { c.toolName(p, name, r) })
	c.each(path+".methods", r.Methods, func(p, method string) {
		if !isVisible(method) || strings.ContainsAny(method, "*,") {
			c.fault(p, "want a JSON-RPC method such as tools/call or resources/read, without patterns, got %s; write each method out", c.got(p))
		}
	})
	c.each(path+".scopes", r.Scopes, c.scope)
	c.each(path+".callers", r.Callers, func(p, name string) {
		if _, ok := c.f.Callers[name]; !ok {
			c.fault(p, "want the name of one of callers, got %s; add it there or correct the name", c.got(p))
		}
	})
}

// toolName refuses names that no call can have, since a rule that never matches
// protects nothing, and warns of patterns that mean something elsewhere.
func (c *checker) toolName(path, name string, r *ToolRuleSpec) {
	switch {
	case !isTarget([]byte(name)):
		c.fault(path, "want 1 to 2048 bytes without control characters, and without blanks around them, got %s; no tool is called so", c.got(path))
	case strings.ContainsFunc(name, unicode.IsSpace) || isPatternElsewhere(name) && !about(r, "resources/"):
		c.warn(path, "only * stands for something else, so this rule is about tools whose names hold these very characters")
	}
}

// isPatternElsewhere finds what globs and regular expressions have besides *.
func isPatternElsewhere(name string) bool {
	return strings.ContainsAny(name, `?[]{}()|^$+\`) || strings.Contains(name, ".*")
}

// about reports whether one of the rule's methods begins so.
func about(r *ToolRuleSpec, prefix string) bool {
	return slices.ContainsFunc(r.Methods, func(m string) bool { return strings.HasPrefix(m, prefix) })
}

// toolWarnings are about what a block says by itself and may not mean.
func (c *checker) toolWarnings(path string, spec *ToolsSpec) {
	if len(spec.Rules) == 0 && spec.Default == "deny" && !c.at[path+".rules"].bad {
		c.warn(path, "without rules and with default: deny, every tool, prompt and resource is refused; add rules unless that is meant")
	}
	switch Proof(spec.Proof) {
	case ProofHeaders:
		c.warn(path+".proof", "headers are the caller's word until the upstream compares them with the body: it must demand MCP 2026-07-28, and callers of older versions are refused")
	case ProofMCPFilter:
		c.warn(path+".proof", "Envoy's mcp filter is work in progress, and takes members whose names differ by case alone, which some servers take for one another; let check --envoy confirm that it runs as render lays it out, and look again with each new Envoy")
	case ProofBody:
	}
}

// toolsOf checks the rules that govern an upstream against its callers. Rules
// that it inherits may name callers that it does not have.
func (c *checker) toolsOf(path string, up *UpstreamSpec) {
	at, spec := path+".tools", up.Tools
	if spec == nil {
		at, spec = "defaults.tools", c.f.Defaults.Tools
	}
	if spec == nil || !c.good(at) {
		return
	}
	callers := c.callersOf(up)
	for i := range spec.Rules {
		r, p := &spec.Rules[i], toolRule(at, i)
		if !c.good(p) {
			continue
		}
		if up.Tools != nil {
			c.knownCallers(p+".callers", r.Callers, callers)
		}
		if c.needsMore(r, callers) && c.good(p+".scopes") {
			if p += ".scopes"; up.Tools == nil {
				p = path
			}
			c.fault(p, "rule number %d of tools asks for scopes, and none of the callers that it is about can have any; add callers.NAME.scopes, list a caller of kind jwt, or take scopes off and name callers in the rule", i+1)
		}
	}
}

// knownCallers demands that whom a rule is about may call the upstream.
func (c *checker) knownCallers(path string, named, callers []string) {
	c.each(path, named, func(p, name string) {
		if callers != nil && !slices.Contains(callers, name) {
			c.fault(p, "%s is not among the callers of this upstream, so the rule would never be about it; add it to callers or take it off", c.got(p))
		}
	})
}

// needsMore reports whether a rule asks for scopes that nobody can have whom it
// is about. Who calls is unknown while the callers have faults.
func (c *checker) needsMore(r *ToolRuleSpec, callers []string) bool {
	if len(r.Scopes) == 0 {
		return false
	}
	about := 0
	for _, name := range callers {
		if len(r.Callers) > 0 && !slices.Contains(r.Callers, name) {
			continue
		}
		caller, known := c.f.Callers[name]
		if !known || !c.good(join("callers", name)) || caller.JWT != nil || len(caller.Scopes) > 0 {
			return false
		}
		about++
	}
	return about > 0
}

// unreachable warns of a rule that an earlier one decides everything of. Callers
// are those of the upstream, nil where that is open.
func (c *checker) unreachable(path string, rules []ToolRuleSpec, callers []string) {
	for i := range rules {
		for j := range i {
			if covers(&rules[j], &rules[i], callers) {
				c.warn(toolRule(path, i), "rule number %d decides all that this one is about, so it is never reached; put it before that one or remove it", j+1)
				break
			}
		}
	}
}

// covers reports whether every call that b is about is one that a is about.
func covers(a, b *ToolRuleSpec, callers []string) bool {
	whom := b.Callers
	if len(whom) == 0 {
		whom = callers
	}
	return within(b.methods(), func(m string) bool { return slices.Contains(a.methods(), m) }) &&
		(len(a.Callers) == 0 || len(whom) > 0 && within(whom, func(w string) bool { return slices.Contains(a.Callers, w) })) &&
		within(b.names(), func(n string) bool {
			// A * of n is only matched by one of the pattern's.
			return slices.ContainsFunc(a.names(), func(pattern string) bool { return glob(pattern, n) })
		})
}

func within(list []string, has func(string) bool) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !has(s) })
}

func (r *ToolRuleSpec) methods() []string {
	if len(r.Methods) == 0 {
		return []string{"tools/call"}
	}
	return r.Methods
}

func (r *ToolRuleSpec) names() []string {
	if len(r.Names) == 0 {
		return []string{"*"}
	}
	return r.Names
}

// compileTools makes rules of a checked block; nil of none.
func compileTools(spec *ToolsSpec) *Tools {
	if spec == nil {
		return nil
	}
	t := &Tools{
		Proof:         Proof(spec.Proof),
		MaxBody:       int64(spec.MaxBody),
		AllowUnlisted: spec.Default == "allow",
		Implies:       closure(spec.Implies),
	}
	for i := range spec.Rules {
		r := &spec.Rules[i]
		t.Rules = append(t.Rules, ToolRule{Methods: r.methods(), Names: r.names(), Scopes: r.Scopes, Callers: r.Callers})
	}
	return t
}

// closure adds to each scope what the scopes include that it includes. Two
// scopes that include each other mean the same.
func closure(implies map[string][]string) map[string][]string {
	out := make(map[string][]string, len(implies))
	for scope := range implies {
		var all []string
		for todo := slices.Clone(implies[scope]); len(todo) > 0; todo = todo[1:] {
			if next := todo[0]; next != scope && !slices.Contains(all, next) {
				all = append(all, next)
				todo = append(todo, implies[next]...)
			}
		}
		slices.Sort(all)
		out[scope] = all
	}
	return out
}
