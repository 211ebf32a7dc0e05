// Package realredis runs the real redis-server in tests.
//
//	r, err := realredis.Start(ctx, realredis.Config{Dir: t.TempDir()})
//	defer r.Stop()
//
// It keeps nothing on disk. Pause, Continue, Stop and Restart are for the tests
// of those who must do without it.
package realredis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
)

// ErrNotFound is returned by Find when there is no redis-server on this machine.
var ErrNotFound = errors.New("no redis-server found: set $REDIS to the binary, put redis-server on PATH, or run tools/install redis")

// Find returns the path of a redis-server: $REDIS, else redis-server on PATH,
// else the one at .cache/redis/bin/redis-server beside go.mod. A $REDIS that does
// not run is an error and not a reason to look further.
func Find() (string, error) {
	return cached.Part{Env: "REDIS", Dir: "redis", Program: "redis-server", OnPath: true, Missing: ErrNotFound}.Find()
}

// Require returns the path of a redis-server. Without one it skips the test, and
// fails it where CI is set.
func Require(t cached.TB) string {
	t.Helper()
	return cached.Require(t, "Redis", Find, ErrNotFound)
}

// Config says what to run.
type Config struct {
	// Binary is the path of redis-server. Empty means Find.
	Binary string
	// Dir takes the log and, when Socket is set, the socket. Required.
	Dir string
	// Socket serves on DIR/redis.sock as well.
	Socket bool
	// Password is asked of every client; empty means none.
	Password string
	// Args are further arguments, such as "--maxmemory", "2mb".
	Args []string
}

// Redis is a running redis-server.
type Redis struct {
	// Addr is its loopback HOST:PORT, the same after a Restart.
	Addr string
	// Log is the path of its log.
	Log string

	cfg Config

	*realprocess.Process
}

// Start runs redis-server and returns when it answers. The context bounds only the wait.
func Start(ctx context.Context, cfg Config) (*Redis, error) {
	if cfg.Binary == "" {
		found, err := Find()
		if err != nil {
			return nil, err
		}
		cfg.Binary = found
	}
	logging.Disable() // of what the client below thinks of a server that is not up yet
	addrs, err := realprocess.Addresses(ctx, 1)
	if err != nil {
		return nil, err
	}
	r := &Redis{Addr: addrs[0], Log: filepath.Join(cfg.Dir, "redis.log"), cfg: cfg}
	return r, r.start(ctx)
}

// Restart starts it again, empty, after Stop.
func (r *Redis) Restart(ctx context.Context) error { return r.start(ctx) }

func (r *Redis) start(ctx context.Context) error {
	_, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return err
	}
	args := []string{
		"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no",
		"--dir", r.cfg.Dir, "--logfile", r.Log, "--enable-debug-command", "local",
	}
	if r.cfg.Socket {
		args = append(args, "--unixsocket", r.Socket())
	}
	if r.cfg.Password != "" {
		args = append(args, "--requirepass", r.cfg.Password)
	}
	// Not CommandContext: the process outlives the wait that ctx bounds.
	cmd := exec.Command(r.cfg.Binary, append(args, r.cfg.Args...)...) //nolint:gosec,noctx // as above; the binary is Find's
	if r.Process, err = realprocess.Start("redis-server", cmd); err != nil {
		return err
	}
	if err := r.ready(ctx); err != nil {
		r.Stop()
		log, _ := os.ReadFile(r.Log)
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

func (r *Redis) ready(ctx context.Context) error {
	db := r.Client()
	defer db.Close() //nolint:errcheck // nothing is left to lose
	return r.Ready(ctx, 15*time.Second, func(ctx context.Context) bool { return db.Ping(ctx).Err() == nil })
}

// Client returns a client with the password; close it.
func (r *Redis) Client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.Addr, Password: r.cfg.Password, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true})
}

// Socket is the path of its Unix socket.
func (r *Redis) Socket() string { return filepath.Join(r.cfg.Dir, "redis.sock") }

// URL is its address as a policy names it.
func (r *Redis) URL() string { return "redis://" + r.Addr }

// Set changes a setting of the running server.
func (r *Redis) Set(ctx context.Context, name string, value int) error {
	db := r.Client()
	defer db.Close() //nolint:errcheck // nothing is left to lose
	return db.ConfigSet(ctx, name, strconv.Itoa(value)).Err()
}
