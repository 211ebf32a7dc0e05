// Package realratelimit runs the real rate limit service (envoyproxy/ratelimit) in
// tests, on a Redis that they started.
//
//	s, err := realratelimit.Start(ctx, realratelimit.Config{Dir: t.TempDir(), Redis: redis.Addr, Limits: yaml})
//	defer s.Stop()
//
// Pause, Continue, Stop and Restart are for the tests of those who must do
// without it.
package realratelimit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
)

// ErrNotFound is returned by Find when the service is not on this machine.
var ErrNotFound = errors.New("no rate limit service found: set $RATELIMIT to the binary, or run tools/install ratelimit")

// Find returns the path of the service: $RATELIMIT, else the one at
// .cache/ratelimit/bin/ratelimit beside go.mod. A $RATELIMIT that does not run
// is an error and not a reason to look further.
func Find() (string, error) {
	return cached.Part{Env: "RATELIMIT", Dir: "ratelimit", Program: "ratelimit", Missing: ErrNotFound}.Find()
}

// Require returns the path of the service. Without one it skips the test, and
// fails it where CI is set.
func Require(t cached.TB) string {
	t.Helper()
	return cached.Require(t, "rate limit service", Find, ErrNotFound)
}

// Config says what to run.
type Config struct {
	// Binary is the path of the service. Empty means Find.
	Binary string
	// Dir takes the log and the configuration. Required.
	Dir string
	// Redis is the HOST:PORT of a Redis without password. Required.
	Redis string
	// Limits is the service's own configuration. Required.
	Limits string
}

// Service is a running rate limit service.
type Service struct {
	// Addr is the loopback HOST:PORT of its gRPC, the same after a Restart.
	Addr string
	// Log is the path of its log.
	Log string

	cfg   Config
	addrs []string // of its gRPC, HTTP and debug listeners

	*realprocess.Process
}

// Start runs the service and returns when it is healthy. The context bounds only the wait.
func Start(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Binary == "" {
		found, err := Find()
		if err != nil {
			return nil, err
		}
		cfg.Binary = found
	}
	config := filepath.Join(cfg.Dir, "ratelimit", "config")
	if err := os.MkdirAll(config, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(config, "config.yaml"), []byte(cfg.Limits), 0o600); err != nil {
		return nil, err
	}
	addrs, err := realprocess.Addresses(ctx, 3)
	if err != nil {
		return nil, err
	}
	s := &Service{Addr: addrs[0], addrs: addrs, Log: filepath.Join(cfg.Dir, "ratelimit.log"), cfg: cfg}
	return s, s.Restart(ctx)
}

// Restart starts it again after Stop. What it counted is in Redis.
func (s *Service) Restart(ctx context.Context) error {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // the process has its own
	// Not CommandContext: the process outlives the wait that ctx bounds.
	cmd := exec.Command(s.cfg.Binary) //nolint:gosec,noctx // as above; the binary is Find's
	cmd.Env = s.env()
	cmd.Stdout, cmd.Stderr = log, log
	if s.Process, err = realprocess.Start("the rate limit service", cmd); err != nil {
		return err
	}
	if err := s.Ready(ctx, 20*time.Second, s.healthy); err != nil {
		s.Stop()
		said, _ := os.ReadFile(s.Log)
		return fmt.Errorf("%w\n%s", err, said)
	}
	return nil
}

// env is its whole environment: it has 110 variables, and those of the caller are
// none of its business.
func (s *Service) env() []string {
	env := []string{
		"RUNTIME_ROOT=" + s.cfg.Dir, "RUNTIME_SUBDIRECTORY=ratelimit", "RUNTIME_WATCH_ROOT=false", "RUNTIME_IGNOREDOTFILES=true",
		"REDIS_SOCKET_TYPE=tcp", "REDIS_URL=" + s.cfg.Redis, "USE_STATSD=false", "LOG_LEVEL=warn",
	}
	for i, prefix := range []string{"GRPC_", "", "DEBUG_"} {
		host, port, _ := net.SplitHostPort(s.addrs[i])
		env = append(env, prefix+"HOST="+host, prefix+"PORT="+port)
	}
	return env
}

// healthy asks on a connection of its own: gRPC would wait between two tries.
func (s *Service) healthy(ctx context.Context) bool {
	conn, err := grpc.NewClient("passthrough:///"+s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return false
	}
	defer conn.Close() //nolint:errcheck // nothing is left to lose
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err == nil && answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
}
