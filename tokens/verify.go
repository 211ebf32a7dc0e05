package tokens

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// VerifierConfig is what a Verifier needs.
type VerifierConfig struct {
	// Now is the clock, as in Config. Required.
	Now func() time.Time
	// Log gets one line when an issuer's keys cannot be had, when they can be
	// again, and for keys that do not count. The zero value logs nothing.
	Log zerolog.Logger
	// Transport and Dice are those of Config.
	Transport http.RoundTripper
	Dice      func() float64
}

// Verifier verifies the tokens of callers (RFC 9068, RFC 7519) with the keys
// that their issuers publish, which it keeps fresh. Its methods may be called
// from any goroutine.
type Verifier struct {
	cfg      VerifierConfig
	ctx      context.Context //nolint:containedctx // the life of the fetches, which is the verifier's and no caller's
	cancel   context.CancelFunc
	net      *network
	dir      *directory
	deadline time.Duration
	seen     seen

	mu    sync.Mutex // guards the maps
	rules map[key]*Rule
	rings map[keySource]*ring

	crew
}

// NewVerifier returns a Verifier without rules. Close it to stop its work.
func NewVerifier(cfg VerifierConfig) *Verifier {
	if cfg.Dice == nil {
		cfg.Dice = mathrand.Float64
	}
	ctx, cancel := context.WithCancel(context.Background())
	v := &Verifier{
		cfg: cfg, ctx: ctx, cancel: cancel, net: newNetwork(cfg.Transport), deadline: fetchDeadline,
		rules: map[key]*Rule{}, rings: map[keySource]*ring{},
	}
	v.dir = &directory{
		net: v.net, now: cfg.Now, dice: cfg.Dice, spawn: v.spawn, ctx: ctx, servers: map[server]*record{},
		deadline: func() time.Duration { return v.deadline },
	}
	return v
}

// Rule is one way to prove a caller: an issuer, an audience, and what its tokens
// must look like.
type Rule struct {
	v    *Verifier
	key  key
	jwt  policy.JWT
	ring *ring
}

// Rule returns the rule for what a policy says of a caller. Equal ones are one,
// and rules of one issuer share its keys; which header a token is in and which
// scopes it must have make no difference here. It makes no request: Warm or the
// first Verify does. An error means that no token can ever be verified.
func (v *Verifier) Rule(j *policy.JWT) (*Rule, error) {
	if err := ruleFits(j); err != nil {
		return nil, fmt.Errorf("jwt of issuer %q: %w", j.Issuer, err)
	}
	src := keySource{issuer: j.Issuer, url: j.JWKSURL, ca: j.CA, plaintext: j.AllowPlaintext, private: j.AllowPrivate}
	if err := v.net.check(trust{ca: j.CA}); err != nil {
		return nil, fmt.Errorf("jwt of issuer %q: %w", j.Issuer, err)
	}
	r := &Rule{v: v, key: ruleKey(j), jwt: *j}
	v.mu.Lock()
	defer v.mu.Unlock()
	if same := v.rules[r.key]; same != nil {
		return same, nil
	}
	if v.rings[src] == nil {
		v.rings[src] = &ring{v: v, src: src}
	}
	r.ring = v.rings[src]
	r.jwt.Audiences, r.jwt.Algorithms = slices.Clone(j.Audiences), slices.Clone(j.Algorithms)
	r.jwt.Skew = min(max(j.Skew, 0), maxSkew)
	v.rules[r.key] = r
	return r, nil
}

// ruleFits checks what a token can be judged by. The zero value of each field refuses.
func ruleFits(j *policy.JWT) error {
	s := server{plaintext: j.AllowPlaintext}
	switch {
	case !usable(j.Issuer, s) || strings.Contains(j.Issuer, "?"):
		return errors.New("want an https URL without password, query and fragment as issuer")
	case j.JWKSURL != "" && !usable(j.JWKSURL, s):
		return errors.New("want an https URL without password and fragment as jwks_url")
	case len(j.Audiences) == 0 || slices.Contains(j.Audiences, ""):
		return errors.New("want an audience")
	case len(j.Algorithms) == 0:
		return errors.New("want algorithms")
	}
	for _, alg := range j.Algorithms {
		if !slices.Contains(signatures(), oldName(alg)) {
			return fmt.Errorf("algorithms: %q is not one of %s", alg, strings.Join(signatures(), ", "))
		}
	}
	switch j.Profile {
	case policy.ProfileRFC9068, policy.ProfileGeneric, policy.ProfileIDToken:
		return nil
	}
	return fmt.Errorf("profile %q: want rfc9068, generic or id_token", j.Profile)
}

// ruleKey names all that a verdict depends on.
func ruleKey(j *policy.JWT) key {
	h := sha256.New()
	part(h, j.Issuer, j.JWKSURL, j.CA, strconv.FormatBool(j.AllowPlaintext), strconv.FormatBool(j.AllowPrivate))
	part(h, slices.Sorted(slices.Values(j.Audiences))...)
	part(h, j.Algorithms...)
	part(h, string(j.Profile), j.ScopeClaim, j.Skew.String())
	return key(h.Sum(nil))
}

// Presented is a token that a call brought. It is good for that call.
type Presented struct {
	token []byte
	sum   [sha256.Size]byte
	// issuer is set when one of the rules knows the token.
	issuer string
	jws    *jws
	bad    *InvalidTokenError
}

// Present prepares a token for the rules that will be asked about it: what one
// of them verified before spares the others the reading. The token is not
// copied; it must not change.
func Present(token []byte, rules []*Rule) Presented {
	t := Presented{token: token}
	if len(token) > maxToken {
		t.bad = invalid("too_big", "it is over %d bytes", maxToken)
		return t
	}
	t.sum = sha256.Sum256(token)
	for _, r := range rules {
		if p := r.known(&t.sum); p != nil {
			t.issuer = p.Issuer
			break
		}
	}
	return t
}

// Concerns is false when another rule has verified the token as one of another
// issuer: then this one refuses it without a look.
func (t *Presented) Concerns(r *Rule) bool { return t.issuer == "" || t.issuer == r.jwt.Issuer }

// Known returns the principal of a token that this rule has verified in the last
// minute, or nil: VerifyPresented without any work or wait.
func (r *Rule) Known(t *Presented) *Principal {
	if t.bad != nil {
		return nil
	}
	return r.known(&t.sum)
}

// Verify verifies a compact JWS. A token that was verified in the last minute
// costs a hash and a look into a map; the Principal is shared then. Errors are
// *InvalidTokenError, or an *Error of kind Unavailable when the issuer's keys cannot
// be had: then nothing is known of the token. Waiting for keys ends with ctx.
func (r *Rule) Verify(ctx context.Context, token []byte) (*Principal, error) {
	t := Present(token, nil)
	return r.VerifyPresented(ctx, &t)
}

// VerifyPresented is Verify for a token that several rules are asked about. It
// takes the token apart once, however many they are.
func (r *Rule) VerifyPresented(ctx context.Context, t *Presented) (*Principal, error) {
	if t.bad != nil {
		return nil, t.bad
	}
	if !t.Concerns(r) {
		return nil, invalid("issuer", "its iss is %s, want %q to the letter", cited(t.issuer), r.jwt.Issuer)
	}
	if p := r.known(&t.sum); p != nil {
		return p, nil
	}
	if t.jws == nil {
		if t.jws, t.bad = parseJWS(t.token); t.bad != nil {
			return nil, t.bad
		}
	}
	now := r.v.cfg.Now()
	read, bad := r.check(t.jws, now)
	if bad != nil {
		return nil, bad
	}
	set, err := r.prove(ctx, t.jws)
	if err != nil {
		return nil, err
	}
	p := newPrincipal(read, t.jws.text)
	r.v.seen.put(seenKey{t.sum, r}, proven{p, set, earlier(p.Expiry, now.Add(seenLife))}, now)
	return p, nil
}

// known returns the principal of a token that was verified lately with keys
// that are still in force.
func (r *Rule) known(sum *[sha256.Size]byte) *Principal {
	now := r.v.cfg.Now()
	return r.v.seen.get(seenKey{*sum, r}, r.ring.current(now), now)
}

// prove verifies the signature. When the keys at hand do not, there may be newer
// ones: also under a kid that is known, if its issuer uses it again.
func (r *Rule) prove(ctx context.Context, j *jws) (*keySet, error) {
	set, bad := r.ring.get(ctx)
	if bad != nil {
		return nil, bad
	}
	no := r.proves(j, set)
	if no == nil {
		return set, nil
	}
	fresh, bad := r.ring.renew(ctx, set)
	if fresh != set {
		no = r.proves(j, fresh)
	}
	switch {
	case no == nil:
		return fresh, nil
	case bad != nil && no.Code == codeUnknownKey:
		// It may be a new key, and the issuer cannot be asked: to say that the
		// token is bad would send its holder to log in anew for nothing.
		return nil, bad
	}
	return nil, no
}

// proves reports nil when a key of the set made the signature.
func (r *Rule) proves(j *jws, set *keySet) *InvalidTokenError {
	k, bad := set.find(j, r.jwt.Algorithms)
	if bad != nil {
		return bad
	}
	if !j.verify(k) {
		return invalid("signature", "its signature is not made with the key %s of its issuer", cited(k.id))
	}
	return nil
}

// Retain drops every rule but those of keep: call it after a reload, with all
// rules in force. The keys of issuers that nobody needs are no longer refreshed.
func (v *Verifier) Retain(keep []*Rule) {
	v.mu.Lock()
	defer v.mu.Unlock()
	rules, rings, servers := map[*Rule]bool{}, map[*ring]bool{}, map[server]bool{}
	for _, r := range keep {
		rules[r], rings[r.ring] = true, true
		v.rules[r.key], v.rings[r.ring.src] = r, r.ring
		servers[server{issuer: r.jwt.Issuer, ca: r.jwt.CA, plaintext: r.jwt.AllowPlaintext, keys: true}] = true
	}
	for k, r := range v.rules {
		if !rules[r] {
			delete(v.rules, k)
		}
	}
	for src, r := range v.rings {
		if rings[r] {
			r.resume(false)
			continue
		}
		r.stop()
		delete(v.rings, src)
	}
	v.dir.retain(servers)
	v.seen.keep(rules)
}

// Warm starts fetching the keys of every issuer that was not asked yet, in the
// background.
func (v *Verifier) Warm() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.rings {
		r.resume(true)
	}
}

// Status describes the keys of each issuer, sorted.
func (v *Verifier) Status() []IssuerStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]IssuerStatus, 0, len(v.rings))
	for _, r := range v.rings {
		all = append(all, r.status())
	}
	slices.SortFunc(all, func(a, b IssuerStatus) int { return strings.Compare(a.Issuer+" "+a.URL, b.Issuer+" "+b.URL) })
	return all
}

// Close stops all timers and fetches and waits for them. Calls that wait get an error.
func (v *Verifier) Close() {
	v.dismiss()
	v.cancel()
	v.mu.Lock()
	for _, r := range v.rings {
		r.stop()
	}
	v.mu.Unlock()
	v.wg.Wait()
	v.net.close()
}
