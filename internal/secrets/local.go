package secrets

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxSize bounds a secret: keys and tokens are small, and a wrong path to a
// large file should fail instead of being read.
const maxSize = 64 << 10

// Refresh looks at every file once.
func (s *Store) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := 0
	for at, sec := range s.held {
		if at.ref.Kind != policy.SecretFile {
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
	sec.stamp, sec.ill = stamp, ""
	s.replace(sec, v)
}

// replace puts a value in force, and says so when it is a new one.
func (s *Store) replace(sec *secret, v policy.Secret) {
	old := sec.value.Swap(&v)
	if old != nil && old.Reveal() != v.Reveal() {
		s.cfg.Log.Info().Str("secret", sec.ref.String()).Msg("secret changed")
	}
}

// read reads a local secret.
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
	case policy.SecretVault, policy.SecretAWS, policy.SecretGCP:
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
	b, err := watchfile.Read(path, maxSize)
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
