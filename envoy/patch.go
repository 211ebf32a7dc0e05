package envoy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Change is one edit that Patch made.
type Change struct {
	// Path is the way to the setting, such as static_resources.clusters[a].circuit_breakers.
	Path string
	// What was done there, and Why: a few words, and a sentence.
	What, Why string
}

// String returns the change as one line, without a newline.
func (c Change) String() string { return fmt.Sprintf("%s: %s: %s", c.Path, c.What, c.Why) }

// Patched is a configuration with a policy's upstreams attached.
type Patched struct {
	// Config is the whole file with the changes in it, YAML or JSON as it was. Where
	// Whole is false, what was given was a /config_dump, which nobody can load: Config
	// then holds, for each resource, the parts that change.
	Config []byte
	Whole  bool
	// Changes are in the order in which they were made. Without any, Config is the
	// file that was given, byte by byte.
	Changes []Change
	// Assumed is what the file does not say and the changes rest upon.
	Assumed []string
	// Open is what a person must decide: what Check finds in the result, since
	// mending it would take something of the user's away or needs knowledge that is
	// in neither file.
	Open []Finding
	// Notes are matters to look at that no check can find, such as an upstream
	// without a cluster here.
	Notes []string
}

// Patch adds to the configuration of an Envoy that somebody already runs what makes
// it ask the server: to the cluster of each upstream the chain of filters, to the
// routes that lead there and to their listeners the settings that these need. b is
// a bootstrap file or the answer of the admin's /config_dump, in YAML or JSON.
//
// Nothing of b is lost but values that are unsafe on the way to these clusters, and
// Changes names each with what it was. A file that needs nothing comes back as it is,
// so patching twice is patching once. What Check then finds is in Open.
func Patch(name string, b []byte, set *policy.Set, opt Options) (*Patched, error) {
	opt = opt.withDefaults(set)
	if err := fitting(set); err != nil {
		return nil, fmt.Errorf("patching %q: %w", name, err)
	}
	doc, err := readDocument(b)
	if err != nil {
		return nil, fmt.Errorf("reading envoy configuration %q: %w", name, err)
	}
	p, err := newPatcher(doc, set, opt)
	if err != nil {
		return nil, fmt.Errorf("patching %q: %w", name, err)
	}
	p.all()
	if p.err != nil {
		return nil, fmt.Errorf("patching %q: %w", name, p.err)
	}
	whole, err := p.written(b)
	if err != nil {
		return nil, fmt.Errorf("writing the patched %q: %w", name, err)
	}
	out := &Patched{Config: whole, Whole: !p.dump, Changes: p.changes, Assumed: p.assumed, Notes: p.notes}
	if out.Open, err = Check(name, whole, set); err != nil {
		return nil, err
	}
	if p.dump {
		out.Config, err = p.fragments()
	}
	return out, err
}

// readDocument reads one YAML or JSON document. Aliases are written out, because a change
// in one place must not be one in another.
func readDocument(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	doc := new(yaml.Node)
	if err := dec.Decode(doc); err != nil {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one document; Envoy reads no second one")
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("want a mapping at the top")
	}
	if err := asEnvoy(doc); err != nil {
		return nil, err
	}
	left := maxNodes
	return doc, spread(doc, &left, map[*yaml.Node]bool{})
}

// maxNodes bounds what aliases of aliases can grow to.
const maxNodes = 4 << 20

// spread replaces aliases by copies of what they stand for. open are those on the
// way down.
func spread(n *yaml.Node, left *int, open map[*yaml.Node]bool) error {
	n.Anchor = ""
	for i, c := range n.Content {
		if c.Kind == yaml.AliasNode {
			c = resolve(c)
		}
		if *left--; *left < 0 || open[c] {
			return errors.New("an alias stands for itself, or all of them for more than four million values")
		}
		twin := *c
		twin.Content = slices.Clone(c.Content)
		n.Content[i] = &twin
		open[c] = true
		if err := spread(&twin, left, open); err != nil {
			return err
		}
		delete(open, c)
	}
	return nil
}

// patcher holds one run of Patch.
type patcher struct {
	*checker // what is where; its findings are not used

	doc     *yaml.Node
	opt     Options
	ups     []target
	dump    bool
	changes []Change
	assumed []string
	notes   []string
	parents map[*yaml.Node]*yaml.Node
	// fresh are the values that are new, entire those that lost or gained members.
	fresh, entire map[*yaml.Node]bool
	removed       map[*yaml.Node][]string // keys that were taken out of a mapping
	remarks       *writer
	processorName string          // of the cluster that leads to the server
	names         map[string]bool // of filters, filled by rename
	err           error
}

func newPatcher(doc *yaml.Node, set *policy.Set, opt Options) (*patcher, error) {
	root := tree{n: doc.Content[0], at: 1}
	cfg := collect(root)
	if len(cfg.listeners)+len(cfg.clusters) == 0 {
		return nil, errors.New("want listeners or clusters, got none; where Envoy fetches them, give the answer of its admin's /config_dump")
	}
	p := &patcher{
		checker: &checker{config: cfg, set: set, upOf: map[string]*target{}, byName: map[string]*target{}, onlyMarked: true},
		doc:     doc, opt: opt, dump: root.get("configs").ok(),
		parents: map[*yaml.Node]*yaml.Node{}, fresh: map[*yaml.Node]bool{}, entire: map[*yaml.Node]bool{},
		removed: map[*yaml.Node][]string{},
		remarks: &writer{left: patchComments()},
	}
	p.adopt(doc)
	var err error
	if p.ups, err = targets(set); err != nil {
		return nil, err
	}
	if err := p.policy(); err != nil {
		return nil, err
	}
	p.processors()
	p.survey()
	return p, nil
}

// all makes every change.
func (p *patcher) all() {
	attached := p.attached()
	if p.err != nil {
		return
	}
	p.processorName = p.wayHere()
	p.managers()
	for _, t := range attached {
		cl, _ := p.cluster(t.Cluster)
		p.upstreamCluster(cl, t)
	}
	p.process()
}

// attached returns the upstreams whose clusters are here, and says of the others
// what is missing. None at all is an error: nothing would be protected.
func (p *patcher) attached() []target {
	var found []target
	for _, t := range p.ups {
		cl, ok := p.cluster(t.Cluster)
		if ok {
			found = append(found, t)
			p.assumeCluster(cl, t)
			continue
		}
		note := fmt.Sprintf("upstream %q: there is no cluster %q here", t.Name, t.Cluster)
		if near := p.clustersTo(t.host); len(near) > 0 {
			note += fmt.Sprintf("; what leads to %s is %s: if that is it, write envoy: {cluster: %s} in the policy", t.host, strings.Join(near, ", "), near[0])
		} else {
			note += "; if this Envoy is to lead there, add the cluster and a route, or name another with envoy: {cluster: …} in the policy"
		}
		p.notes = append(p.notes, note)
	}
	if len(found) == 0 {
		names := make([]string, len(p.clusters))
		for i, cl := range p.clusters {
			names[i] = cl.get("name").str()
		}
		p.fail(fmt.Errorf("no upstream of the policy has its cluster here:\n  %s\nThe clusters here are: %s", strings.Join(p.notes, "\n  "), strings.Join(names, ", ")))
	}
	return found
}

func (p *patcher) assumeCluster(cl tree, t target) {
	to := endpoints(cl)
	want := fmt.Sprintf("%s:%d", t.host, t.port)
	switch {
	case slices.Contains(to, want):
		p.assume("cluster %q is upstream %q: it leads to %s, as the policy's url does", t.Cluster, t.Name, want)
	case len(to) == 0:
		p.assume("cluster %q is upstream %q, whose url is %s; where the cluster leads is not said here", t.Cluster, t.Name, t.URL)
	default:
		p.assume("cluster %q is upstream %q, by its name. It leads to %s, and the policy's url is %s: the credential goes where the cluster leads", t.Cluster, t.Name, strings.Join(to, ", "), t.URL)
	}
}

// clustersTo names the clusters with an endpoint on that host.
func (p *patcher) clustersTo(host string) []string {
	var names []string
	for _, cl := range p.clusters {
		if slices.ContainsFunc(endpoints(cl), func(e string) bool { return strings.HasPrefix(e, host+":") }) {
			names = append(names, cl.get("name").str())
		}
	}
	return names
}

// endpoints returns where a cluster leads, as HOST:PORT.
func endpoints(cl tree) []string {
	var all []string
	cl.get("load_assignment").walk(func(t tree) bool {
		if a := t.get("socket_address"); a.ok() {
			all = append(all, strings.ToLower(a.get("address").str())+":"+a.get("port_value").str())
		}
		return true
	})
	return all
}

func (p *patcher) assume(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(p.assumed, s) {
		p.assumed = append(p.assumed, s)
	}
}

func (p *patcher) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(p.notes, s) {
		p.notes = append(p.notes, s)
	}
}

func (p *patcher) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}
