package policy

import (
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

func (l *StringList) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.SequenceNode {
		var list []string
		d.list(n, path, reflect.ValueOf(&list).Elem())
		*l = list
		return
	}
	*l = StringList{d.text(n, path, "a string or a list of strings")}
}

func (s *StringOrFalse) decode(d *decoder, n *yaml.Node, path string) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
		if s.Off = strings.EqualFold(n.Value, "false"); !s.Off {
			d.fault(path, "want a string or the word false, got true; leave the key out for the default")
		}
		return
	}
	s.Value = d.text(n, path, "a string or the word false")
}

func (t *Duration) decode(d *decoder, n *yaml.Node, path string) {
	if !isString(n) {
		hint := "write a number with its unit"
		if isNull(n) {
			hint = "give it a value or leave the key out"
		}
		d.fault(path, "want a duration such as 1.5s, 5m or 24h, got %s; %s", kind(n), hint)
		return
	}
	text := d.text(n, path, "a duration")
	if d.at[path].bad {
		return
	}
	v, ok := parseDuration(text)
	switch {
	case !ok:
		d.fault(path, "want a duration such as 1.5s, 5m or 24h, got %s; write a number with its unit", show(n.Value))
	case v <= 0:
		d.fault(path, "want a duration above zero, got %s; write a longer one", show(n.Value))
	}
	*t = v
}

// parseDuration takes what time.ParseDuration takes but for a leading plus.
func parseDuration(text string) (Duration, bool) {
	v, err := time.ParseDuration(text)
	return Duration(v), err == nil && !strings.HasPrefix(text, "+")
}

func (s *Size) decode(d *decoder, n *yaml.Node, path string) {
	if !isString(n) {
		hint := "write a whole number with its unit"
		if isNull(n) {
			hint = "give it a value or leave the key out"
		}
		d.fault(path, "want a size such as 512KiB or 1MiB, got %s; %s", kind(n), hint)
		return
	}
	text := d.text(n, path, "a size")
	if d.at[path].bad {
		return
	}
	v, ok := parseSize(text)
	if !ok {
		d.fault(path, "want a size such as 512KiB or 1MiB, got %s; write a whole number with its unit", show(n.Value))
	}
	*s = v
}

// parseSize takes a whole number of KiB or MiB. Units of ten would be taken for
// these by some and not by others.
func parseSize(text string) (Size, bool) {
	unit := Size(1 << 10)
	digits, ok := strings.CutSuffix(text, "KiB")
	if !ok {
		unit = 1 << 20
		digits, ok = strings.CutSuffix(text, "MiB")
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return Size(n) * unit, ok && err == nil
}

func (r *Rate) decode(d *decoder, n *yaml.Node, path string) {
	const want = "want a rate such as 100/s, 600/min, 1000/h or 5000/day"
	if !isString(n) {
		d.fault(path, want+", got %s; write a whole number, a slash and a unit", kind(n))
		return
	}
	text := d.text(n, path, "a rate")
	if d.at[path].bad {
		return
	}
	v, ok := parseRate(text)
	if !ok {
		d.fault(path, want+", got %s; write a whole number above zero, a slash and a unit", show(n.Value))
	}
	*r = v
}

func (c *CredentialSpec) decode(d *decoder, n *yaml.Node, path string) {
	switch {
	case n.Kind == yaml.MappingNode:
		d.keys(n, path, reflect.ValueOf(c).Elem())
		d.exactlyOne(path, "oauth2", "header")
	case n.Kind == yaml.ScalarNode && n.Value == "none" && isString(n):
		c.None = true
	default:
		d.fault(path, "want the word none, or a mapping with oauth2 or header, got %s; pick one of the three", kind(n))
	}
}

// exactlyOne checks a block that is one of several kinds.
func (d *decoder) exactlyOne(path string, keys ...string) {
	var got []string
	for _, key := range keys {
		if d.has(join(path, key)) {
			got = append(got, key)
		}
	}
	switch {
	case len(got) > 1:
		d.fault(path, "want exactly one of %s, got %s; keep one", choice(keys), strings.Join(got, " and "))
	case len(got) == 0 && !d.faulty(path): // else an unknown key is the fault
		d.fault(path, "want exactly one of %s, got none of them; add one", choice(keys))
	}
}

// faulty reports whether a key of the mapping at path has a fault.
func (d *decoder) faulty(path string) bool {
	n := d.at[path].node
	for i := 0; i < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if m, ok := d.at[join(path, n.Content[i].Value)]; !ok || m.bad {
			return true
		}
	}
	return false
}

const byReference = "write ${NAME}, {env: NAME} or {file: PATH}"

// decode reads a secret's source. What stands in the file in place of one may
// be the secret itself, so no fault here repeats it, keys included.
func (s *SecretSpec) decode(d *decoder, n *yaml.Node, path string) {
	switch n.Kind {
	case yaml.MappingNode:
		s.source(d, n, path)
		return
	case yaml.ScalarNode:
	case yaml.SequenceNode, yaml.AliasNode, yaml.DocumentNode:
		d.fault(path, "want a secret, got %s; %s", kind(n), byReference)
		return
	}
	if isNull(n) {
		d.fault(path, "want a secret, got nothing; %s", byReference)
		return
	}
	value, ex, err := expand(n.Value, d.env)
	switch {
	case !strings.Contains(n.Value, "${") || err == nil && ex.count == 0:
		d.fault(path, "want the name of a secret, got a literal value (not shown); move it out of the file and %s", byReference)
	case err != nil:
		d.fault(path, "%s", err)
	case ex.empty != "":
		d.fault(path, "the variable %s is empty; put the secret in it", ex.empty)
	default:
		d.printable(path, value)
	}
	s.Ref = SecretRef{SecretText, n.Value}
}

// printable refuses what cannot travel in a header or a form, and would fail there call by call.
// A private key and a key file of Google's never do, and have lines.
func (d *decoder) printable(path, value string) {
	key := strings.TrimSuffix(path, ".env")
	if strings.HasSuffix(key, ".oauth2.private_key") || strings.HasSuffix(key, ".oauth2.idp.private_key") || key == "secret_stores.gcp.credentials" {
		return
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		d.fault(path, "the secret holds a control character such as a line break (not shown); store it without")
	}
	if slices.Contains([]string{"shared_cache.key", "audit.key", "watch.alerts.webhook.secret"}, key) && len(value) < minKey {
		d.fault(path, "want at least %d characters, got fewer (not shown); make one with: openssl rand -base64 32", minKey)
	}
}

// source reads a secret that is written as a mapping.
func (s *SecretSpec) source(d *decoder, n *yaml.Node, path string) {
	if !d.only(n, path, "env", "file", "vault", "aws", "gcp") {
		return
	}
	for _, p := range d.pairs(n, path) {
		if !d.plain(p.node, p.path) {
			continue
		}
		switch p.key {
		case "vault", "aws", "gcp":
			s.stored(d, p)
			continue
		}
		text := d.text(p.node, p.path, "the name of a secret")
		switch {
		case d.at[p.path].bad:
		case p.key == "env":
			s.Env, s.Ref = text, SecretRef{SecretEnv, text}
			s.environment(d, p.path, text)
		default:
			s.File, s.Ref = text, SecretRef{SecretFile, d.resolve(text)}
		}
	}
	d.exactlyOne(path, "env", "file", "vault", "aws", "gcp")
}

// only refuses keys that are not among those known, without repeating them.
func (d *decoder) only(n *yaml.Node, path string, known ...string) bool {
	for i := 0; i < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if key := n.Content[i]; key.Kind != yaml.ScalarNode || !slices.Contains(known, key.Value) {
			d.fault(path, "unknown key in a secret (not shown); want %s", choice(known))
			return false
		}
	}
	return true
}

func (s *SecretSpec) environment(d *decoder, path, name string) {
	value, err := variable(name, true, d.env)
	switch {
	case !isVariable(name):
		d.fault(path, "want the name of an environment variable (what stands there is not shown); use letters, digits and _")
	case err != nil:
		d.fault(path, "%s", err)
	case value == "":
		d.fault(path, "the variable %s is empty; put the secret in it", name)
	default:
		d.printable(path, value)
	}
}

// resolve makes a path relative to the policy file's directory.
func (d *decoder) resolve(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(d.dir, path)
}
