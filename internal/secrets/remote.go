package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// How stores are read. A secret that cannot be read is tried again after 1 s,
// doubling to 30 s.
const (
	readTimeout  = 10 * time.Second
	firstRetry   = time.Second
	lastRetry    = 30 * time.Second
	defaultPoll  = time.Minute
	perStore     = 4       // reads of one store at a time
	maxAnswer    = 1 << 20 // bytes of one answer of a store
	maxFaultText = 200
)

// reader reads from one store. It keeps the session with it. The time for which
// the value is good is zero when the store does not say; it is also the time
// after which the session wants attention.
type reader interface {
	read(ctx context.Context, ref policy.SecretRef) (string, time.Duration, error)
}

// storeError is a failure in words of this program. What stores and their SDKs
// say is not repeated: nobody here can tell what it holds.
type storeError struct{ text string }

func (e *storeError) Error() string { return e.text }

func failure(format string, args ...any) error {
	return &storeError{fmt.Sprintf(format, args...)}
}

// sourceOf reads one of the secrets that stores are opened with.
type sourceOf func(policy.SecretRef) (policy.Secret, error)

func (s *Store) reader(settings any) reader {
	switch st := settings.(type) {
	case policy.VaultStore:
		return newVault(st, s.Secret, s.cfg.Now)
	case policy.AWSStore:
		return &awsStore{cfg: st, secret: s.Secret, turn: newTurn()}
	case policy.GCPStore:
		return &gcpStore{cfg: st, secret: s.Secret, turn: newTurn()}
	}
	return noStore{}
}

// noStore stands for settings that a policy does not have; policy.Parse sees to
// it that no secret needs them.
type noStore struct{}

func (noStore) read(context.Context, policy.SecretRef) (string, time.Duration, error) {
	return "", 0, failure("the policy has no settings for this store; add them to secret_stores")
}

// follow starts a follower for each new remote secret. One goroutine per secret,
// so that nothing waits for another's store. mu is held.
func (s *Store) follow(added map[place]*secret, stores policy.SecretStores) []*secret {
	s.poll.Store(int64(stores.Every))
	maps.Copy(s.held, added)
	readers := map[any]*shared{}
	var fresh []*secret
	for at, sec := range added {
		if !at.ref.Remote() {
			continue
		}
		if readers[at.store] == nil {
			readers[at.store] = s.sharedReader(at.store)
		}
		sec.from = readers[at.store]
		s.wg.Go(func() { s.keep(sec) })
		fresh = append(fresh, sec)
	}
	return fresh
}

// sharedReader returns the reader of a store: the one in use, if any.
func (s *Store) sharedReader(settings any) *shared {
	for at, sec := range s.held {
		if at.store == settings && sec.from != nil {
			return sec.from
		}
	}
	return &shared{reader: s.dial(settings), slots: make(chan struct{}, perStore)}
}

// shared is a reader with a bound on reads at a time.
type shared struct {
	reader
	slots chan struct{}
}

func (r *shared) read(ctx context.Context, ref policy.SecretRef) (string, time.Duration, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return "", 0, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	return r.reader.read(ctx, ref)
}

// sameStore reports whether a secret was in the same store before, reached in
// another way.
func (s *Store) sameStore(before *secret, at place) bool {
	for was, sec := range s.held {
		if sec == before {
			return address(was.store) == address(at.store)
		}
	}
	return false
}

// address is what makes a store another one: not how it is opened.
func address(settings any) any {
	switch st := settings.(type) {
	case policy.VaultStore:
		return policy.VaultStore{Address: st.Address, Namespace: st.Namespace}
	case policy.AWSStore:
		return policy.AWSStore{Region: st.Region, Endpoint: st.Endpoint}
	case policy.GCPStore:
		return policy.GCPStore{Endpoint: st.Endpoint}
	}
	return nil
}

// keep reads a secret until nobody needs it or the Store is closed.
func (s *Store) keep(sec *secret) {
	failures := 0
	for first := true; ; first = false {
		wait := time.NewTimer(s.once(s.ctx, sec, &failures))
		if first {
			close(sec.tried)
		}
		select {
		case <-sec.quit:
			wait.Stop()
			return
		case <-s.ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// once reads a secret and returns when to read it again.
func (s *Store) once(ctx context.Context, sec *secret, failures *int) time.Duration {
	v, good, err := sec.from.read(ctx, sec.ref)
	if err == nil {
		v, err = checked(v)
	}
	if err != nil {
		*failures++
		if ctx.Err() == nil {
			s.failed(sec, err)
		}
		return s.spread(min(firstRetry<<min(*failures-1, 10), lastRetry))
	}
	*failures = 0
	if sec.ill != "" {
		s.cfg.Log.Info().Str("secret", sec.ref.String()).Msg("secret can be read again")
	}
	sec.ill = ""
	s.replace(sec, policy.NewSecret(v))
	sec.fault.Store(nil)
	pause := time.Duration(s.poll.Load())
	if pause <= 0 {
		pause = defaultPoll
	}
	if pause = s.spread(pause); good > 0 {
		pause = min(pause, max(good, time.Second))
	}
	return pause
}

// failed keeps the failure for whoever asks, and logs it when it is another than before.
func (s *Store) failed(sec *secret, err error) {
	fault := &UnavailableError{Ref: sec.ref, Why: describe(err)}
	sec.fault.Store(fault)
	if sec.ill == fault.Why {
		return
	}
	sec.ill = fault.Why
	msg := "secret cannot be read; what needs it is refused until then"
	if sec.value.Load() != nil {
		msg = "secret not refreshed, the last good value stays"
	}
	s.cfg.Log.Warn().Str("secret", sec.ref.String()).Str("error", fault.Why).Msg(msg)
}

// spread returns d, give or take a tenth.
func (s *Store) spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*s.cfg.Dice()))
}

// checked refuses what can be no secret.
func checked(v string) (string, error) {
	if len(v) > maxSize {
		return "", failure("it has %d bytes, want at most %d; is this the right one?", len(v), maxSize)
	}
	if v = trimNewline(v); v == "" {
		return "", failure("it is empty; put a value there")
	}
	return v, nil
}

// describe turns any error into a text that holds nothing of an answer.
func describe(err error) string {
	if own, ok := errors.AsType[*storeError](err); ok {
		return own.text
	}
	const hint = "check the address, the network between and the state of the store"
	if errors.Is(err, context.DeadlineExceeded) {
		return "the store does not answer in time; " + hint
	}
	if inner, ok := errors.AsType[*url.Error](err); ok {
		err = inner.Err
	}
	if inner, ok := errors.AsType[*net.OpError](err); ok {
		return "the store cannot be reached (" + clean(inner.Error()) + "); " + hint
	}
	if strings.HasPrefix(err.Error(), "tls: ") || strings.HasPrefix(err.Error(), "x509: ") {
		return "the store's certificate is refused (" + clean(err.Error()) + "); check ca and the address"
	}
	return "the store's answer cannot be used, or its connection ended; " + hint
}

// clean keeps an error of the network on one short line.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), maxFaultText)]
}

// answered describes an HTTP status that is no success.
func answered(status int, word string) error {
	if word != "" {
		word = " " + word
	}
	switch {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return failure("the store refuses the read (%d%s); let this process's role read it", status, word)
	case status == http.StatusNotFound:
		return failure("it is not in the store (%d%s); create it, or correct its name", status, word)
	case status == http.StatusTooManyRequests:
		return failure("the store asks for fewer requests (%d%s); raise secret_stores.every, or the quota", status, word)
	case status >= 500:
		return failure("the store is not able to answer (%d%s); check that it is up, and a Vault unsealed", status, word)
	}
	return failure("the store refuses the request (%d%s); check secret_stores and the secret's name", status, word)
}

// member returns one string of a JSON object.
func member(object []byte, key string) (string, error) {
	var members map[string]any
	if json.Unmarshal(object, &members) != nil {
		return "", failure("it is no JSON object, so it has no key %q; take key out of the policy, or store an object", key)
	}
	return text(members, key)
}

func text(members map[string]any, key string) (string, error) {
	v, ok := members[key]
	if !ok {
		return "", failure("it has no key %q; add that, or correct key", key)
	}
	s, ok := v.(string)
	if !ok {
		return "", failure("its key %q is no string; store a string there", key)
	}
	return s, nil
}

// turn lets one goroutine at a time open or renew a session.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// own reads a secret that a store is opened with.
func (f sourceOf) own(ref policy.SecretRef) (string, error) {
	v, err := f(ref)
	if err != nil {
		return "", failure("the secret %s that opens the store cannot be read; create it", ref)
	}
	return v.Reveal(), nil
}

// bounded cuts answers off that are longer than any secret.
type bounded struct{ base http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	return resp, nil
}

// transport returns what stores are reached through.
func transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: readTimeout,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   perStore,
		ForceAttemptHTTP2:     true,
	}
}

// client follows no redirects: they would carry a token elsewhere.
func client(base http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     bounded{base},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// word keeps an error code of a store, if that is all it is.
func word(code string) string {
	if len(code) > 64 || slices.ContainsFunc([]byte(code), func(b byte) bool {
		return (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && b != '_'
	}) {
		return ""
	}
	return code
}
