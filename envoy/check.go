package envoy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Finding is one unsafe setting of an Envoy configuration.
type Finding struct {
	// ID names the kind of fault, such as failure-mode-allow. IDs are stable.
	ID string
	// File is the name handed to Check.
	File string
	// Line is the line of the setting, counted from 1; for a setting that is
	// missing, the line of the block that should hold it.
	Line int
	// Path is the way to the setting, such as static_resources.clusters[a].connect_timeout.
	Path string
	// What is wrong, Why it matters, and the Fix: a sentence each.
	What, Why, Fix string
}

// String returns the finding as one line, without a newline.
func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s: %s. %s. Fix: %s.", f.File, f.Line, f.ID, f.Path, f.What, f.Why, f.Fix)
}

// Check reads the configuration of an Envoy, as YAML or JSON: a bootstrap file,
// or what its admin interface answers to /config_dump. It returns every unsafe
// setting, by line. With a policy it also compares the two; a nil set leaves
// that out. An error means that b is not such a configuration.
//
// It reads only b: routes or clusters that Envoy fetches elsewhere are seen in a
// /config_dump, not in a bootstrap.
func Check(name string, b []byte, set *policy.Set) ([]Finding, error) {
	root, err := parseTree(b)
	if err != nil {
		return nil, fmt.Errorf("reading envoy configuration %q: %w", name, err)
	}
	cfg := collect(root)
	if len(cfg.listeners)+len(cfg.clusters)+len(cfg.routes) == 0 {
		return nil, fmt.Errorf("reading envoy configuration %q: want listeners or clusters, got none; give a bootstrap file or the answer of the admin's /config_dump", name)
	}
	c := &checker{file: name, config: cfg, set: set, upOf: map[string]*target{}, byName: map[string]*target{}}
	if err := c.policy(); err != nil {
		return nil, err
	}
	c.learn()
	c.processors()
	c.clusterChecks()
	c.listenerChecks()
	c.coverage()
	c.secretChecks(root)
	c.verdicts(root)
	c.waysAround()
	c.processChecks()
	return c.sorted(), nil
}

// checker holds one run of Check.
type checker struct {
	config

	file  string
	set   *policy.Set
	found []Finding

	upOf, byName map[string]*target // of the policy
	// guarded are the clusters whose own chain asks us; covered those that a
	// listener's chain asks us about on some way.
	guarded, covered map[string]bool
	unasked          []leg           // ways on which no listener's chain asks us
	healing          map[string]bool // clusters whose chain asks us before a second attempt alone
	processorNames   map[string]tree // clusters that our filters call, and a place that does
	guards           map[string]bool // names of filters that demand the mark
	askers           map[string]bool // names of filters that ask us
	foreign          map[string]bool // names of ext_proc filters that ask somebody else
	onlyMarked       bool            // an ext_proc filter without a mark of ours is somebody else's
}

func (c *checker) policy() error {
	if c.set == nil {
		return nil
	}
	ups, err := targets(c.set)
	if err != nil {
		return err
	}
	for i := range ups {
		c.upOf[ups[i].Cluster], c.byName[ups[i].Name] = &ups[i], &ups[i]
	}
	return nil
}

// problem is the text of a finding.
type problem struct{ id, what, why, fix string }

func (c *checker) report(at tree, p problem) {
	c.found = append(c.found, Finding{ID: p.id, File: c.file, Line: at.at, Path: at.path, What: p.what, Why: p.why, Fix: p.fix})
}

// sorted returns the findings by line, each once: blocks are shared by name, so
// one place may be reached in two ways.
func (c *checker) sorted() []Finding {
	slices.SortStableFunc(c.found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Path, b.Path), strings.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(c.found, func(a, b Finding) bool { return a.Line == b.Line && a.Path == b.Path && a.ID == b.ID })
}

// rule demands a value of one setting.
type rule struct {
	keys []string
	ok   func(tree) bool
	problem
}

func (c *checker) rules(at tree, all []rule) {
	for _, r := range all {
		if v := at.get(r.keys...); !r.ok(v) {
			c.report(v, r.problem)
		}
	}
}

func isTrue(t tree) bool  { return t.yes() }
func notTrue(t tree) bool { return !t.yes() }
func present(t tree) bool { return t.ok() }

// oneOf wants one of these values of an enum.
func oneOf(names map[int32]string, values ...string) func(tree) bool {
	return func(t tree) bool { return slices.Contains(values, t.enum(names)) }
}

// noneOf wants another.
func noneOf(names map[int32]string, values ...string) func(tree) bool {
	return func(t tree) bool { return !slices.Contains(values, t.enum(names)) }
}
