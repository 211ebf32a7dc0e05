package policy

import (
	"net/url"
	"strings"
	"time"
)

const (
	// minAuditSize and minAuditAge keep a file to more than a handful of lines.
	minAuditSize = 64 << 10
	minAuditAge  = time.Minute
)

// audit checks the `audit` block.
func (c *checker) audit(path string, spec *AuditSpec) {
	if !c.good(path) {
		return
	}
	c.auditSinks(path, spec)
	if p := path + ".file"; c.good(p) && strings.HasSuffix(spec.File, "/") {
		c.fault(p, "want the path of a file, got that of a directory, %s; add a name such as audit.jsonl", c.got(p))
	}
	c.auditRotate(path+".rotate", spec)
	if spec.Syslog != nil {
		c.auditSyslog(path+".syslog", spec.Syslog)
	}
	if spec.OTLP != nil {
		c.otlp(path+".otlp", spec.OTLP)
	}
}

// auditSinks checks that there is a sink, and one that can be required.
func (c *checker) auditSinks(path string, spec *AuditSpec) {
	if spec.File != "" || spec.Stdout || c.faulty(path) {
		return
	}
	if spec.Syslog == nil && spec.OTLP == nil {
		c.fault(path, "want at least one of file, stdout, syslog and otlp, got none of them; add for example file: /var/log/envoy-mcp-auth/audit.jsonl")
	}
	if p := path + ".required"; c.good(p) && spec.Required {
		c.fault(p, "want file or stdout with this, since only these say that a line is written; add file")
	}
}

func (c *checker) auditRotate(path string, spec *AuditSpec) {
	if c.good(path) && spec.File == "" {
		c.fault(path, "this is about file, and there is none; remove it, or add file")
		return
	}
	r := &spec.Rotate
	if p := path + ".size"; c.good(p) && r.Size < minAuditSize {
		c.fault(p, "want at least 64KiB, got %s; write for example 100MiB", c.got(p))
	}
	if p := path + ".age"; c.good(p) && time.Duration(r.Age) < minAuditAge {
		c.fault(p, "want at least 1m, got %s; write for example 24h", c.got(p))
	}
	if p := path + ".keep"; c.good(p) && r.Keep < 0 {
		c.fault(p, "want a number of files, got %s; write 0 to keep all", c.got(p))
	}
}

func (c *checker) auditSyslog(path string, spec *AuditSyslogSpec) {
	if p := path + ".tag"; c.good(p) && (!isVisible(spec.Tag) || len(spec.Tag) > 32 || strings.ContainsAny(spec.Tag, "[]:")) {
		c.fault(p, "want at most 32 visible ASCII characters without [, ] and :, got %s; correct it", c.got(p))
	}
	if p := path + ".address"; c.good(p) {
		c.syslogServer(p, spec)
	}
}

func (c *checker) syslogServer(path string, spec *AuditSyslogSpec) {
	got := c.gotURL(path)
	u, err := url.Parse(spec.Address)
	if err != nil || !isVisible(spec.Address) || strings.ContainsAny(spec.Address, "?#@") {
		c.fault(path, "want unix:///PATH, udp://HOST:PORT or tcp://HOST:PORT, got %s; check its spelling", got)
		return
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && len(u.Path) > 1:
	case u.Scheme == "unix":
		c.fault(path, "want unix:///ABSOLUTE/PATH, got %s; write three slashes and the socket's path", got)
	case u.Scheme != "udp" && u.Scheme != "tcp":
		c.fault(path, "want a URL that starts with unix://, udp:// or tcp://, got %s; correct it", got)
	case !isServer(u):
		c.fault(path, "want HOST:PORT after the scheme, got %s; write for example udp://syslog.company.com:514", got)
	case !spec.AllowPlaintext && !isLoopback(u.Hostname()):
		c.fault(path, "want a server on this host, since syslog is not encrypted, got %s; send it to a local relay that speaks TLS, or set allow_plaintext: true if the network between is yours", got)
	}
}

// isServer takes a host and a port alone.
func isServer(u *url.URL) bool {
	return u.Hostname() != "" && u.Port() != "" && validPort(u) && u.Path == ""
}

func (c *checker) compileAudit() *Audit {
	spec := c.f.Audit
	if spec == nil {
		return nil
	}
	a := &Audit{
		File:     c.resolve(spec.File),
		Stdout:   spec.Stdout,
		Required: spec.Required,
		Size:     int64(spec.Rotate.Size),
		Age:      time.Duration(spec.Rotate.Age),
		Keep:     spec.Rotate.Keep,
		Key:      spec.Key.Ref,
	}
	if s := spec.Syslog; s != nil {
		a.Syslog = AuditSyslog{Address: s.Address, Facility: s.Facility, Tag: s.Tag}
	}
	if o := spec.OTLP; o != nil {
		a.OTLP = &AuditOTLP{Endpoint: o.Endpoint, CA: c.resolve(o.CA), Headers: o.headers()}
	}
	return a
}

// Audit is the compiled `audit` block.
type Audit struct {
	// File is the path of the file, or empty.
	File   string
	Stdout bool
	// Required refuses what cannot be recorded.
	Required bool
	// Size and Age are when File is put aside, Keep how many such are kept; 0 for all.
	Size int64
	Age  time.Duration
	Keep int
	// Key makes the chain a keyed one; zero for none.
	Key SecretRef
	// Syslog has an Address when lines go there.
	Syslog AuditSyslog
	// OTLP is nil when no lines go there.
	OTLP *AuditOTLP
}

// AuditSyslog is a syslog server.
type AuditSyslog struct{ Address, Facility, Tag string }

// AuditOTLP is an OpenTelemetry collector.
type AuditOTLP struct {
	// Endpoint is the URL that logs are posted to, CA the path of the authorities of its
	// certificate, or empty.
	Endpoint, CA string
	// Headers are sent along, sorted by name; names are lower case.
	Headers []SecretHeader
}

// Secrets lists the secrets of the audit; nil has none.
func (a *Audit) Secrets() []SecretRef {
	if a == nil {
		return nil
	}
	var refs []SecretRef
	if !a.Key.IsZero() {
		refs = append(refs, a.Key)
	}
	if a.OTLP != nil {
		for _, h := range a.OTLP.Headers {
			refs = append(refs, h.Value)
		}
	}
	return refs
}
