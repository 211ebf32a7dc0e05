package realratelimit_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realratelimit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

func TestStartPauseRestartStop(t *testing.T) {
	redis, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer redis.Stop()
	s, err := realratelimit.Start(t.Context(), realratelimit.Config{
		Binary: realratelimit.Require(t), Dir: t.TempDir(), Redis: redis.Addr,
		Limits: "domain: d\ndescriptors: [{key: k, rate_limit: {unit: day, requests_per_unit: 2}}]\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	answers := func() (rlsv3.RateLimitResponse_Code, error) {
		conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // nothing is left to lose
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		answer, err := rlsv3.NewRateLimitServiceClient(conn).ShouldRateLimit(ctx, &rlsv3.RateLimitRequest{
			Domain:      "d",
			Descriptors: []*ratelimitv3.RateLimitDescriptor{{Entries: []*ratelimitv3.RateLimitDescriptor_Entry{{Key: "k", Value: "v"}}}},
		})
		return answer.GetOverallCode(), err
	}
	if code, err := answers(); err != nil || code != rlsv3.RateLimitResponse_OK {
		t.Errorf("want room, got %v, %v", code, err)
	}
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := answers(); err == nil {
		t.Error("paused: want no answer")
	}
	s.Stop()
	s.Stop()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _ = answers()
	if code, err := answers(); err != nil || code != rlsv3.RateLimitResponse_OVER_LIMIT {
		t.Errorf("want it to go on where it was, got %v, %v", code, err)
	}
}

func TestStartTellsWhatTheServiceSaid(t *testing.T) {
	_, err := realratelimit.Start(t.Context(), realratelimit.Config{
		Binary: realratelimit.Require(t), Dir: t.TempDir(), Redis: "127.0.0.1:1", Limits: "domain: d\n",
	})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("want the service's complaint about its Redis, got %v", err)
	}
}

func TestFindTakesNoOtherThanRATELIMIT(t *testing.T) {
	t.Setenv("RATELIMIT", filepath.Join(t.TempDir(), "gone"))
	if p, err := realratelimit.Find(); err == nil || errors.Is(err, realratelimit.ErrNotFound) {
		t.Errorf("want an error about $RATELIMIT, got %q, %v", p, err)
	}
}
