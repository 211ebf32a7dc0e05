package policy

import (
	"net/url"
	"strconv"
	"strings"
)

// minKey is the least length of shared_cache.key, audit.key and the secret of the watch's
// webhook: what 128 bits need when they are written in hex.
const minKey = 32

// sharedCache checks the `shared_cache` block.
func (c *checker) sharedCache(path string, spec *SharedCacheSpec) {
	c.redis(path+".redis", spec)
	if p := path + ".ca"; c.good(p) && c.good(path+".redis") && !strings.HasPrefix(strings.ToLower(spec.Redis), "rediss:") {
		c.fault(p, "this is for rediss:// servers; remove it, or write rediss:// to speak TLS")
	}
	if p := path + ".username"; c.good(p) && !isVisible(spec.Username) {
		c.fault(p, "want a user name without blanks, got %s; correct it", c.got(p))
	}
	if p := path + ".username"; c.good(p) && !c.has(path+".password") {
		c.fault(path+".password", "want the password of the user, got nothing; add this key")
	}
	if p := path + ".prefix"; c.good(p) && (!isVisible(spec.Prefix) || strings.ContainsAny(spec.Prefix, "{}") || len(spec.Prefix) > 64) {
		c.fault(p, "want at most 64 visible ASCII characters without { and }, got %s; correct it", c.got(p))
	}
}

// redis checks the server's URL.
func (c *checker) redis(path string, spec *SharedCacheSpec) {
	if !c.good(path) {
		return
	}
	u, ok := c.bareURL(path, spec.Redis)
	if !ok {
		return
	}
	got := c.gotURL(path)
	switch plain := u.Scheme == "redis" && !spec.AllowPlaintext; {
	case u.Scheme == "unix":
		if u.Host != "" || len(u.Path) < 2 || strings.HasSuffix(u.Path, "/") {
			c.fault(path, "want unix:///ABSOLUTE/PATH, got %s; write three slashes and the socket's path", got)
		}
	case u.Scheme != "redis" && u.Scheme != "rediss":
		c.fault(path, "want a URL that starts with rediss://, redis:// or unix://, got %s; correct it", got)
	case !isRedisServer(u):
		c.fault(path, "want HOST:PORT and at most the number of a database after it, got %s; write for example rediss://redis.example:6379/0", got)
	case plain && !isLoopback(u.Hostname()):
		c.fault(path, "want rediss:// for a host that is not loopback, got %s; use rediss://, or set allow_plaintext: true if the network between is yours", got)
	}
}

// bareURL parses the URL of a server. A user or password in it would be a secret
// in the file, so that faults never repeat one with an @.
func (c *checker) bareURL(path, raw string) (*url.URL, bool) {
	got := c.gotURL(path)
	u, err := url.Parse(raw)
	switch {
	case err != nil || !isVisible(raw) || u.Opaque != "":
		c.fault(path, "want rediss://HOST:PORT/DB, redis://HOST:PORT/DB or unix:///PATH, got %s; check its spelling", got)
	case strings.Contains(raw, "@"):
		c.fault(path, "want a URL without user and password, got %s; use the keys username and password", got)
	case strings.ContainsAny(raw, "?#"):
		c.fault(path, "want a URL without a query and a fragment, got %s; take them off", got)
	default:
		return u, true
	}
	return nil, false
}

// isRedisServer takes a host with at most a port, and after it nothing or the
// number of a database.
func isRedisServer(u *url.URL) bool {
	number := strings.TrimPrefix(u.Path, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	return u.Hostname() != "" && validPort(u) && (number == "" || err == nil && number == strconv.FormatUint(n, 10))
}

func (c *checker) compileSharedCache() *SharedCache {
	spec := c.f.SharedCache
	if spec == nil {
		return nil
	}
	return &SharedCache{
		Redis:    spec.Redis,
		Username: spec.Username,
		Password: spec.Password.Ref,
		CA:       c.resolve(spec.CA),
		Key:      spec.Key.Ref,
		Prefix:   spec.Prefix,
	}
}

// Secrets lists the secrets of the shared cache; nil has none.
func (s *SharedCache) Secrets() []SecretRef {
	if s == nil {
		return nil
	}
	if s.Password.IsZero() {
		return []SecretRef{s.Key}
	}
	return []SecretRef{s.Password, s.Key}
}
