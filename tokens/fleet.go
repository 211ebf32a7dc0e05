package tokens

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// lookPatience bounds what a call may wait for the shared cache.
	lookPatience = 20 * time.Millisecond
	// settlePatience bounds storing a token and giving a lock back. Nobody waits for that but Close.
	settlePatience = 500 * time.Millisecond
	// dialPatience bounds one new connection, TLS and login included.
	dialPatience = time.Second
	// lockLife is how long a lock outlives a replica that died with it.
	lockLife = fetchDeadline + time.Second
	// coldPatience is how long calls without a token wait for the one that another replica fetches.
	coldPatience = time.Second
	// pollPace is how often they look.
	pollPace = 50 * time.Millisecond
	// leastKey is the least length of the secret that seals.
	leastKey = 32
)

// FleetConfig is what a Fleet needs.
type FleetConfig struct {
	// Spec is the policy's shared_cache. Required.
	Spec policy.SharedCache
	// Secrets reads its key and password, at each use and each connection.
	// Required; it must answer from memory.
	Secrets SecretSource
	// Now is the clock, as for a Cache. Required.
	Now func() time.Time
	// Log gets one line when the server becomes unusable, for another reason,
	// or usable again.
	Log zerolog.Logger
	// Observe is called with the result of every use, a word of a closed list:
	// hit, miss and stored are those of a server that works. It may be nil.
	Observe func(result string)
	// Up is told when the server becomes usable or unusable. It may be nil.
	Up func(up bool)
	// Patience is how long a call waits for the server. Zero means 20 ms.
	Patience time.Duration
}

// Fleet is the cache that replicas share: a Redis or Valkey server. What is
// stored there is sealed and bound to its place, so that who owns the server can
// neither read a token nor pass one off for another. Nothing depends on it:
// without it each replica fetches for itself, and no call waits for it longer
// than Patience. Its methods may be called from any goroutine.
type Fleet struct {
	cfg      FleetConfig
	db       *redis.Client
	ctx      context.Context //nolint:containedctx // the life of the connections
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	link     *link
	patience time.Duration
}

// NewFleet starts connecting and returns at once: a server that is down is no
// error. One that can never be reached as it is written is.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	f := &Fleet{cfg: cfg, link: newLink(cfg.Now()), patience: cmp.Or(cfg.Patience, lookPatience)}
	opts, err := f.options()
	if err != nil {
		return nil, fmt.Errorf("shared_cache: %w", err)
	}
	if _, err := f.secret(); errors.Is(err, errShortKey) {
		return nil, fmt.Errorf("shared_cache: key: %w", err)
	}
	// It would write its own lines to stderr, with the words of whoever answers.
	logging.Disable()
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.db = redis.NewClient(opts)
	f.wg.Go(f.watch)
	return f, nil
}

// Close gives the connections up. Tokens handed out stay good.
func (f *Fleet) Close() {
	f.cancel()
	_ = f.db.Close()
	f.wg.Wait()
}

// options are those of a client that obeys our deadlines: it repeats nothing,
// and asks for nothing that a Redis 6 or a Valkey does not know.
func (f *Fleet) options() (*redis.Options, error) {
	scheme, addr, db, err := serverOf(f.cfg.Spec.Redis)
	if err != nil {
		return nil, err
	}
	network, secure := "tcp", scheme == "rediss"
	if scheme == "unix" {
		network = scheme
	}
	if secure {
		if _, err := f.authorities(); err != nil {
			return nil, err
		}
	}
	return &redis.Options{
		Network: network, Addr: addr, DB: db, Protocol: 2,
		Dialer: f.dialer(secure), CredentialsProviderContext: f.login,
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: dialPatience, ReadTimeout: dialPatience, WriteTimeout: dialPatience, PoolTimeout: dialPatience,
		PoolSize: 16, MaxIdleConns: 4, PipelinePoolSize: -1,
	}, nil
}

// serverOf reads redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH.
func serverOf(address string) (scheme, addr string, db int, err error) {
	bad := errors.New("redis: want redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH")
	u, err := url.Parse(address)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", 0, bad
	}
	if u.Scheme == "unix" && u.Host == "" && u.Path != "" {
		return "unix", u.Path, 0, nil
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" || u.Hostname() == "" {
		return "", "", 0, bad
	}
	if number := strings.Trim(u.Path, "/"); number != "" {
		if db, err = strconv.Atoi(number); err != nil || db < 0 {
			return "", "", 0, fmt.Errorf("redis: want the number of a database after the host, got %q", number)
		}
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "6379")), db, nil
}

// dialer makes connections. The authorities are read for each, since files change.
func (f *Fleet) dialer(secure bool) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		plain := &net.Dialer{Timeout: dialPatience}
		dial := plain.DialContext
		if secure {
			roots, err := f.authorities()
			if err != nil {
				return nil, err
			}
			dial = (&tls.Dialer{NetDialer: plain, Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}).DialContext // the name comes from addr
		}
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newWire(c), nil
	}
}

// authorities returns those of the policy; nil means the system's.
func (f *Fleet) authorities() (*x509.CertPool, error) {
	if f.cfg.Spec.CA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(f.cfg.Spec.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca: want PEM certificates in %q, got none", f.cfg.Spec.CA)
	}
	return roots, nil
}

var (
	errPassword = errors.New("the password cannot be read")
	errKey      = errors.New("the key cannot be read")
	errShortKey = fmt.Errorf("want at least %d characters: write one with openssl rand -base64 32", leastKey)
)

// login returns the credentials of a new connection.
func (f *Fleet) login(context.Context) (username, password string, err error) {
	if f.cfg.Spec.Password.IsZero() {
		return f.cfg.Spec.Username, "", nil
	}
	v, err := f.cfg.Secrets.Secret(f.cfg.Spec.Password)
	if err != nil || v.Reveal() == "" {
		return "", "", errPassword
	}
	return f.cfg.Spec.Username, v.Reveal(), nil
}

// secret returns what all keys are derived from.
func (f *Fleet) secret() (string, error) {
	v, err := f.cfg.Secrets.Secret(f.cfg.Spec.Key)
	switch {
	case err != nil || v.Reveal() == "":
		return "", errKey
	case len(v.Reveal()) < leastKey:
		return "", errShortKey
	}
	return v.Reveal(), nil
}

func (f *Fleet) observe(result string) {
	if f.cfg.Observe != nil {
		f.cfg.Observe(result)
	}
}

// FleetStatus is how the shared cache stands. Nothing in it is secret.
type FleetStatus struct {
	// Server is the address of the policy.
	Server string `json:"server"`
	// State is connecting, up or down.
	State string `json:"state"`
	// Since is when that began.
	Since time.Time `json:"since"`
	// Code and Reason say why it is down.
	Code   string `json:"code,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Status describes the shared cache for /status.
func (f *Fleet) Status() FleetStatus {
	code, since := f.link.now()
	st := FleetStatus{Server: f.cfg.Spec.Redis, State: "up", Since: since.Round(0)}
	switch code {
	case "":
	case connecting:
		st.State = connecting
	default:
		st.State, st.Code, st.Reason = "down", code, reasonOf(code)
	}
	return st
}
