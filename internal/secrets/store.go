// Package secrets reads the secrets that a policy names, and reads files again
// when they change.
//
// Values are kept in memory only. A file that becomes unreadable or empty does
// not take a working secret away: the last good value stays, and the log says so.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxFile bounds a secret file: keys and tokens are small, and a wrong path to
// a large file should fail instead of being read.
const maxFile = 64 << 10

// Config is what a Store needs.
type Config struct {
	// Env looks up environment variables. Required.
	Env func(string) (string, bool)
	// Every is how often Run looks at files; 0 means 2 s.
	Every time.Duration
	// Stale is told after each look how many files could not be read again, so
	// that the last good value serves. It may be nil.
	Stale func(n int)
	// Log is told of changes and failures, by name and never by value.
	Log zerolog.Logger
}

// Store holds the secrets in use. Its methods may be called from any number of
// goroutines; Secret takes no lock.
type Store struct {
	cfg   Config
	mu    sync.Mutex // guards changes of held
	held  atomic.Pointer[map[policy.SecretRef]*secret]
	every time.Duration
}

// secret is one value and the state of the file it came from.
type secret struct {
	ref   policy.SecretRef
	value atomic.Pointer[policy.Secret]
	stamp watchfile.Stamp // guarded by Store.mu
	ill   string          // the failure last logged; guarded by Store.mu
}

// New returns an empty Store.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg, every: cfg.Every}
	if s.every <= 0 {
		s.every = 2 * time.Second
	}
	s.held.Store(&map[policy.SecretRef]*secret{})
	return s
}

// ErrUnknown means that a secret was asked for that no policy in force names.
var ErrUnknown = errors.New("secret not loaded")

// Secret returns the newest good value of ref.
func (s *Store) Secret(ref policy.SecretRef) (policy.Secret, error) {
	held, ok := (*s.held.Load())[ref]
	if !ok {
		return policy.Secret{}, fmt.Errorf("%w: %s", ErrUnknown, ref)
	}
	return *held.value.Load(), nil
}

// Require reads every ref that is not held yet. All can be read, or nothing
// changes and the error names each that cannot.
func (s *Store) Require(refs []policy.SecretRef) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := *s.held.Load()
	next := make(map[policy.SecretRef]*secret, len(held)+len(refs))
	maps.Copy(next, held)
	var faults []error
	for _, ref := range refs {
		if next[ref] != nil {
			continue
		}
		sec, err := s.open(ref)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		next[ref] = sec
	}
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	s.held.Store(&next)
	return nil
}

// Retain forgets every secret but refs.
func (s *Store) Retain(refs []policy.SecretRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := *s.held.Load()
	next := make(map[policy.SecretRef]*secret, len(refs))
	for _, ref := range refs {
		if sec := held[ref]; sec != nil {
			next[ref] = sec
		}
	}
	s.held.Store(&next)
}

// Run looks at the files until ctx ends.
func (s *Store) Run(ctx context.Context) {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.Refresh()
		}
	}
}

// Refresh looks at every file once.
func (s *Store) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := 0
	for ref, sec := range *s.held.Load() {
		if ref.Kind != policy.SecretFile {
			continue
		}
		s.refresh(sec)
		if sec.ill != "" {
			stale++
		}
	}
	if s.cfg.Stale != nil {
		s.cfg.Stale(stale)
	}
}

func (s *Store) refresh(sec *secret) {
	stamp, err := watchfile.Of(sec.ref.Name)
	if err == nil && stamp == sec.stamp {
		sec.ill = "" // back as it was, such as a symlink that was swapped twice
		return
	}
	var v policy.Secret
	if err == nil {
		v, err = readFile(sec.ref.Name)
	}
	if err != nil {
		if sec.ill != err.Error() {
			sec.ill = err.Error()
			s.cfg.Log.Warn().Err(err).Msg("secret not refreshed, the last good value stays")
		}
		return
	}
	if again, err := watchfile.Of(sec.ref.Name); err != nil || again != stamp {
		return // it is being written; the next look sees the whole
	}
	changed := v.Reveal() != sec.value.Load().Reveal()
	sec.stamp, sec.ill = stamp, ""
	sec.value.Store(&v)
	if changed {
		s.cfg.Log.Info().Str("secret", sec.ref.String()).Msg("secret changed")
	}
}

func (s *Store) open(ref policy.SecretRef) (*secret, error) {
	sec := &secret{ref: ref}
	v, err := s.read(sec)
	if err != nil {
		return nil, err
	}
	sec.value.Store(&v)
	return sec, nil
}

func (s *Store) read(sec *secret) (policy.Secret, error) {
	switch sec.ref.Kind {
	case policy.SecretText:
		v, err := policy.Expand(sec.ref.Name, s.cfg.Env)
		return s.nonEmpty(sec.ref, v, err)
	case policy.SecretEnv:
		v, ok := s.cfg.Env(sec.ref.Name)
		if !ok {
			return policy.Secret{}, fmt.Errorf("environment variable %s is not set; set it, or name another in %s", sec.ref.Name, sec.ref)
		}
		return s.nonEmpty(sec.ref, v, nil)
	case policy.SecretFile:
		stamp, err := watchfile.Of(sec.ref.Name)
		if err != nil {
			return policy.Secret{}, fmt.Errorf("secret %s: %w; create the file or correct the path", sec.ref, err)
		}
		sec.stamp = stamp
		return readFile(sec.ref.Name)
	}
	return policy.Secret{}, fmt.Errorf("secret %q is of no known kind", sec.ref.Name)
}

func (*Store) nonEmpty(ref policy.SecretRef, v string, err error) (policy.Secret, error) {
	if err != nil {
		return policy.Secret{}, err
	}
	if v = trimNewline(v); v == "" {
		return policy.Secret{}, fmt.Errorf("secret %s is empty; put a value there", ref)
	}
	return policy.NewSecret(v), nil
}

func readFile(path string) (policy.Secret, error) {
	b, err := watchfile.Read(path, maxFile)
	if err != nil {
		if errors.Is(err, os.ErrPermission) {
			return policy.Secret{}, fmt.Errorf("reading secret: %w; let the user of this process read it", err)
		}
		return policy.Secret{}, fmt.Errorf("reading secret: %w", err)
	}
	v := trimNewline(string(b))
	if v == "" {
		return policy.Secret{}, fmt.Errorf("secret file %s is empty; put a value there", path)
	}
	return policy.NewSecret(v), nil
}

// trimNewline cuts the one line end that editors and echo leave.
func trimNewline(v string) string {
	return strings.TrimSuffix(strings.TrimSuffix(v, "\n"), "\r")
}

// Of lists the secrets that a policy names, each once.
func Of(set *policy.Set) []policy.SecretRef {
	seen := map[policy.SecretRef]bool{}
	var refs []policy.SecretRef
	add := func(ref policy.SecretRef) {
		if !ref.IsZero() && !seen[ref] {
			seen[ref] = true
			refs = append(refs, ref)
		}
	}
	for _, up := range set.Upstreams {
		if o := up.Credential.OAuth2; o != nil {
			add(o.ClientSecret)
		}
		for _, h := range up.Credential.Headers {
			add(h.Value)
		}
	}
	return refs
}
