// Package secrets reads the secrets that a policy names, and reads them again
// while the program runs: files when they change, stores behind the network
// (Vault, AWS Secrets Manager, Google Secret Manager) from time to time.
//
// Values are kept in memory only. A file that becomes unreadable or empty, and a
// store that is down, do not take a working secret away: the last good value
// stays, and the log says so.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Config is what a Store needs.
type Config struct {
	// Env looks up environment variables. Required.
	Env func(string) (string, bool)
	// Every is how often Run looks at files; 0 means 2 s.
	Every time.Duration
	// Stale is told after each look how many files could not be read again, so
	// that the last good value serves. It may be nil.
	Stale func(n int)
	// Wait is how long Require waits for the first answers of stores; 0 means 5 s.
	Wait time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Dice returns random numbers in [0,1) that spread reads of stores, from
	// any number of goroutines; nil means a random one.
	Dice func() float64
	// Log is told of changes and failures, by name and never by value.
	Log zerolog.Logger
}

// Store holds the secrets in use. Its methods may be called from any number of
// goroutines. Secret takes no lock and answers from memory.
type Store struct {
	cfg    Config
	ctx    context.Context // the life of the followers, ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	every  time.Duration
	poll   atomic.Int64 // how often stores are read, in nanoseconds
	dial   func(settings any) reader

	mu    sync.Mutex // guards what follows, and changes of table
	held  map[place]*secret
	table atomic.Pointer[map[policy.SecretRef]*secret]
}

// place is where a secret comes from: the ref, and for a remote one the settings
// of its store. A ref of a store that moved is another place.
type place struct {
	ref   policy.SecretRef
	store any // policy.VaultStore, policy.AWSStore or policy.GCPStore; nil for a local secret
}

// secret is one value and the state of its source.
type secret struct {
	ref   policy.SecretRef
	value atomic.Pointer[policy.Secret]    // nil while it was never read
	fault atomic.Pointer[UnavailableError] // why a remote one cannot be read now; nil when it can
	stamp watchfile.Stamp                  // guarded by Store.mu
	ill   string                           // the failure last logged; guarded by Store.mu, or by the follower
	tried chan struct{}                    // closed after the first read of a remote one
	from  *shared                          // the store of a remote one
	quit  chan struct{}                    // closed to end the follower of a remote one
}

// Needs are the secrets of a policy, and the settings of the stores they are in.
type Needs struct {
	// Refs are the secrets, each once.
	Refs []policy.SecretRef
	// Stores says how stores are reached.
	Stores policy.SecretStores
}

// Of lists the secrets that a policy names, those of its stores included.
func Of(set *policy.Set) Needs {
	needs := Needs{Stores: set.Stores}
	seen := map[policy.SecretRef]bool{}
	add := func(ref policy.SecretRef) {
		if !ref.IsZero() && !seen[ref] {
			seen[ref] = true
			needs.Refs = append(needs.Refs, ref)
		}
	}
	for _, ref := range set.Stores.Secrets() {
		add(ref)
	}
	for _, ref := range set.SharedCache.Secrets() {
		add(ref)
	}
	for _, ref := range set.Watch.Secrets() {
		add(ref)
	}
	for _, ref := range set.Audit.Secrets() {
		add(ref)
	}
	for _, ref := range set.Tracing.Secrets() {
		add(ref)
	}
	for _, up := range set.Upstreams {
		if o := up.Credential.OAuth2; o != nil {
			for _, ref := range o.Secrets() {
				add(ref)
			}
		}
		for _, h := range up.Credential.Headers {
			add(h.Value)
		}
	}
	return needs
}

// New returns an empty Store.
func New(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the default of a field
	}
	if cfg.Dice == nil {
		cfg.Dice = mathrand.Float64
	}
	if cfg.Every <= 0 {
		cfg.Every = 2 * time.Second
	}
	if cfg.Wait <= 0 {
		cfg.Wait = 5 * time.Second
	}
	s := &Store{cfg: cfg, every: cfg.Every, held: map[place]*secret{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.dial = s.reader
	s.table.Store(&map[policy.SecretRef]*secret{})
	return s
}

// Close stops reading. What was read stays readable.
func (s *Store) Close() {
	s.cancel()
	s.wg.Wait()
}

// ErrUnknown means that a secret was asked for that no policy in force names.
var ErrUnknown = errors.New("secret not loaded")

// UnavailableError is the error for a secret in a store that was never read so far.
type UnavailableError struct {
	// Ref is the secret.
	Ref policy.SecretRef
	// Why is a text of this program, never of the store.
	Why string
}

// Error implements error.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("secret %s is not there: %s", e.Ref, e.Why)
}

// Secret returns the newest good value of ref. The error is of type *UnavailableError
// for a secret whose store has not given it yet; it is tried again by itself.
func (s *Store) Secret(ref policy.SecretRef) (policy.Secret, error) {
	held, ok := (*s.table.Load())[ref]
	if !ok {
		return policy.Secret{}, fmt.Errorf("%w: %s", ErrUnknown, ref)
	}
	if v := held.value.Load(); v != nil {
		return *v, nil
	}
	if fault := held.fault.Load(); fault != nil {
		return policy.Secret{}, fault
	}
	return policy.Secret{}, &UnavailableError{Ref: ref, Why: "its store has not answered yet"}
}

// Missing returns an *UnavailableError for every secret in use that was never read,
// in no order.
func (s *Store) Missing() []error {
	var faults []error
	for ref := range *s.table.Load() {
		if _, err := s.Secret(ref); err != nil {
			faults = append(faults, err)
		}
	}
	return faults
}

// Require reads every secret that is not held yet. All local ones can be read,
// or nothing changes and the error names each that cannot. Those in stores are
// waited for, but not longer than Config.Wait: their absence is no error here.
func (s *Store) Require(needs Needs) error {
	fresh, err := s.take(needs)
	if err != nil || len(fresh) == 0 {
		return err
	}
	limit := time.NewTimer(s.cfg.Wait)
	defer limit.Stop()
	for _, sec := range fresh {
		select {
		case <-sec.tried:
		case <-limit.C:
			return nil
		case <-s.ctx.Done():
			return nil
		}
	}
	return nil
}

// take adds what is needed to the table, and returns the remote secrets whose
// first read has begun.
func (s *Store) take(needs Needs) ([]*secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	table := maps.Clone(*s.table.Load())
	added := map[place]*secret{}
	var faults []error
	for _, ref := range needs.Refs {
		at := needs.place(ref)
		sec := s.held[at]
		if sec == nil {
			var err error
			if sec, err = s.open(at, table[ref]); err != nil {
				faults = append(faults, err)
				continue
			}
			added[at] = sec
		}
		table[ref] = sec
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	s.table.Store(&table)
	return s.follow(added, needs.Stores), nil
}

// open makes a secret. A remote one is read later; when its store is the one it
// was in before, with other settings, it keeps the value until then.
func (s *Store) open(at place, before *secret) (*secret, error) {
	sec := &secret{ref: at.ref}
	if at.ref.Remote() {
		sec.tried, sec.quit = make(chan struct{}), make(chan struct{})
		if before != nil && s.sameStore(before, at) {
			sec.value.Store(before.value.Load())
		}
		return sec, nil
	}
	v, err := s.read(sec)
	if err != nil {
		return nil, err
	}
	sec.value.Store(&v)
	return sec, nil
}

// place returns where a secret is to be found.
func (n *Needs) place(ref policy.SecretRef) place {
	at := place{ref: ref}
	switch {
	case ref.Kind == policy.SecretVault && n.Stores.Vault != nil:
		at.store = *n.Stores.Vault
	case ref.Kind == policy.SecretAWS && n.Stores.AWS != nil:
		at.store = *n.Stores.AWS
	case ref.Kind == policy.SecretGCP && n.Stores.GCP != nil:
		at.store = *n.Stores.GCP
	case ref.Kind == policy.SecretGCP:
		at.store = policy.GCPStore{}
	}
	return at
}

// Retain forgets every secret but those needed. After a Require of other needs
// whose policy did not come into force, it is the way back.
func (s *Store) Retain(needs Needs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := make(map[place]*secret, len(needs.Refs))
	table := make(map[policy.SecretRef]*secret, len(needs.Refs))
	for _, ref := range needs.Refs {
		at := needs.place(ref)
		if sec := s.held[at]; sec != nil {
			keep[at], table[ref] = sec, sec
		}
	}
	for at, sec := range s.held {
		if keep[at] == nil && sec.quit != nil {
			close(sec.quit)
		}
	}
	s.held = keep
	s.poll.Store(int64(needs.Stores.Every))
	s.table.Store(&table)
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
