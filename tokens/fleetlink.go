package tokens

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// probeFirst is the pause between a failure and the first look whether it
	// is over; each further one doubles it, up to probeCap.
	probeFirst = 250 * time.Millisecond
	probeCap   = 8 * time.Second
	// probeIdle is how often a server that works is looked at: that keeps a
	// connection, and what /status says true.
	probeIdle = 5 * time.Second

	// connecting is the code of a link before the first answer.
	connecting = "connecting"
)

// link is what is known of the server. It is a circuit breaker: after a failure
// nobody asks the server but the prober, so that a dead one costs each fetch
// nothing.
type link struct {
	ready chan struct{} // closed after the first verdict
	wake  chan struct{} // wakes the prober

	mu    sync.Mutex
	code  string // why it is down; empty when it is up
	since time.Time
	place string // what was asked for when it failed
}

func newLink(now time.Time) *link {
	return &link{ready: make(chan struct{}), wake: make(chan struct{}, 1), code: connecting, since: now}
}

func (l *link) now() (code string, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.code, l.since
}

// up reports whether the server may be asked. Before the first verdict it waits
// for that, as long as ctx allows.
func (l *link) up(ctx context.Context) bool {
	select {
	case <-l.ready:
	case <-ctx.Done():
		return false
	}
	code, _ := l.now()
	return code == ""
}

// set changes the state and reports whether it is another one.
func (l *link) set(code, place string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if place != "" {
		l.place = place
	}
	if l.code == code {
		return false
	}
	if (l.code == "") != (code == "") || l.code == connecting {
		l.since = now
	}
	l.code = code
	return true
}

// failed records the failure of a use. place is what was asked for.
func (f *Fleet) failed(code, place string) {
	f.turned(code, place)
	select {
	case f.link.wake <- struct{}{}:
	default:
	}
}

// turned puts a state in place and logs a change.
func (f *Fleet) turned(code, place string) {
	if f.ctx.Err() != nil {
		return // closed: what fails now says nothing of the server
	}
	before, _ := f.link.now()
	if !f.link.set(code, place, f.cfg.Now()) {
		return
	}
	if f.cfg.Up != nil {
		f.cfg.Up(code == "")
	}
	log := f.cfg.Log.With().Str("server", f.cfg.Spec.Redis).Logger()
	switch {
	case code != "":
		log.Warn().Str("code", code).Msg("the shared cache is not used, each replica fetches its own tokens: " + reasonOf(code))
	case before != connecting:
		log.Info().Msg("the shared cache is used again")
	}
}

// watch is the prober.
func (f *Fleet) watch() {
	pause, first := probeFirst, true
	for {
		code := f.probe()
		f.turned(code, "")
		if first {
			close(f.link.ready)
			first = false
		}
		if code != "" {
			f.sleep(pause, nil)
			pause = min(2*pause, probeCap)
		} else if f.sleep(probeIdle, f.link.wake) {
			pause = probeFirst // it has lasted
		} else {
			f.sleep(pause, nil)
			pause = min(2*pause, probeCap)
		}
		if f.ctx.Err() != nil {
			return
		}
	}
}

// sleep waits for d and reports whether nothing ended it before.
func (f *Fleet) sleep(d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-wake:
	case <-f.ctx.Done():
	}
	return false
}

// probe asks the server for what a fetch asks: to read at the place that failed
// last, and to write. The first try may take as long as a connection does. When
// the server was down, a second must be as fast as calls need it.
func (f *Fleet) probe() string {
	if _, err := f.secret(); err != nil {
		return codeOf(err)
	}
	code := f.try(dialPatience)
	if was, _ := f.link.now(); code == "" && was != "" {
		code = f.try(f.patience)
	}
	return code
}

func (f *Fleet) try(patience time.Duration) string {
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	f.link.mu.Lock()
	place := f.link.place
	f.link.mu.Unlock()
	pipe := f.db.Pipeline()
	if place != "" {
		pipe.Exists(ctx, place)
	}
	pipe.Set(ctx, f.cfg.Spec.Prefix+":probe", "1", time.Minute)
	_, err := pipe.Exec(ctx)
	return codeOf(err)
}

// codeOf sorts an error of the server or the network into a closed list. None of
// its own words are kept: they are foreign.
func codeOf(err error) string {
	var (
		reply   redis.Error
		timeout net.Error
		badCert *tls.CertificateVerificationError
		badRoot x509.UnknownAuthorityError
		alert   tls.AlertError
		record  tls.RecordHeaderError
	)
	switch {
	case err == nil, errors.Is(err, redis.Nil):
		return ""
	case errors.Is(err, errPassword):
		return "password_unavailable"
	case errors.Is(err, errKey), errors.Is(err, errShortKey):
		return "key_unusable"
	case errors.As(err, &reply):
		return replyCode(reply.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.As(err, &badCert), errors.As(err, &badRoot), errors.As(err, &alert), errors.As(err, &record):
		return "tls"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection_refused"
	}
	return "unreachable"
}

// replyCode sorts an error that the server answered, by its first word.
func replyCode(text string) string {
	word, _, _ := strings.Cut(text, " ")
	switch word {
	case "WRONGPASS", "NOAUTH":
		return "login_refused"
	case "NOPERM":
		return "not_permitted"
	case "OOM":
		return "out_of_memory"
	case "MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN":
		return "cluster"
	case "READONLY":
		return "read_only"
	case "LOADING", "MASTERDOWN", "BUSY", "MISCONF", "NOREPLICAS":
		return "not_ready"
	}
	return "refused"
}

// reasonOf says a code in words, and what to do.
func reasonOf(code string) string {
	switch code {
	case "password_unavailable":
		return "its password cannot be read"
	case "key_unusable":
		return "its key cannot be read, or has fewer than 32 characters"
	case "timeout":
		return "it did not answer in time"
	case "tls":
		return "its certificate cannot be verified: set shared_cache.ca"
	case "connection_refused":
		return "it refuses connections"
	case "login_refused":
		return "it refuses the user name or the password"
	case "not_permitted":
		return "its ACL does not permit SET, GETRANGE, PTTL, EXISTS and EVAL below the prefix"
	case "out_of_memory":
		return "it is out of memory: set a maxmemory-policy that evicts, or raise maxmemory"
	case "cluster":
		return "it is one node of a cluster: name a server or a proxy that holds all keys"
	case "read_only":
		return "it is a read-only replica: name the primary"
	case "not_ready":
		return "it is starting, busy, or cannot write to its disk"
	case "refused":
		return "it answers with an error"
	}
	return "it cannot be reached"
}
