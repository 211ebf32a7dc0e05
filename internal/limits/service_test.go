package limits_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// scripted is a rate limit service that answers what it is told to.
type scripted struct {
	rlsv3.UnimplementedRateLimitServiceServer

	mu     sync.Mutex
	asked  []*rlsv3.RateLimitRequest
	answer func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error)
}

func (s *scripted) ShouldRateLimit(_ context.Context, r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	s.mu.Lock()
	s.asked = append(s.asked, r)
	answer := s.answer
	s.mu.Unlock()
	return answer(r)
}

func (s *scripted) set(answer func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *scripted) take() []*rlsv3.RateLimitRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// respond answers every descriptor alike.
func respond(overall, each rlsv3.RateLimitResponse_Code, most uint32, reset time.Duration) func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	return func(r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
		answer := &rlsv3.RateLimitResponse{OverallCode: overall}
		for range r.GetDescriptors() {
			answer.Statuses = append(answer.Statuses, &rlsv3.RateLimitResponse_DescriptorStatus{
				Code: each, CurrentLimit: &rlsv3.RateLimitResponse_RateLimit{RequestsPerUnit: most}, DurationUntilReset: durationpb.New(reset),
			})
		}
		return answer, nil
	}
}

const (
	ok   = rlsv3.RateLimitResponse_OK
	over = rlsv3.RateLimitResponse_OVER_LIMIT
)

func (s *scripted) serve(t *testing.T, opts ...grpc.ServerOption) string {
	t.Helper()
	return s.listen(t, "tcp", "127.0.0.1:0", opts...)
}

func (s *scripted) listen(t *testing.T, network, addr string, opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(opts...)
	rlsv3.RegisterRateLimitServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return l.Addr().String()
}

// tally counts what the callbacks of a Config are told.
type tally struct {
	mu    sync.Mutex
	words []string
}

func (c *tally) add(word string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.words = append(c.words, word)
}

func (c *tally) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	words := c.words
	c.words = nil
	return strings.Join(words, " ")
}

func (c *tally) config(now func() time.Time) limits.Config {
	return limits.Config{
		Now: now, Log: zerolog.Nop(), Asked: c.add,
		Limited: func(_, rule string) { c.add("limited:" + rule) },
		Up:      func(up bool) { c.add(fmt.Sprint("up:", up)) },
		Off:     func() { c.add("off") },
	}
}

// fleet is a block with the service, patient enough for a busy machine.
func fleet(addr, more string, lines ...string) string {
	return rules(lines...) + fmt.Sprintf("\n  service: {address: %q, timeout: 1s, on_failure: %s}", addr, more)
}

// TestServiceIsAsked in words that the documentation promises.
func TestServiceIsAsked(t *testing.T) {
	t.Parallel()
	s, count := &scripted{answer: respond(ok, ok, 10, 0)}, &tally{}
	l := gate(t, count.config(newClock().now), fleet(s.serve(t), "refuse, domain: mcp",
		"{name: all, fleet: true}", "{name: local, rate: 2/s, callers: [ci]}",
		"{name: each, fleet: true, rate: 600/min, per: [caller, upstream, subject, tool]}", `{name: other, fleet: true, tools: ["t_*"], callers: [cron]}`))
	d := who("ann")
	d.Calls = tool("x", "a b", "x")
	if reason, wait := l.Admit(t.Context(), &d); reason != policy.Allowed || wait != 0 {
		t.Errorf("want allowed, got %v, %s", reason, wait)
	}
	asked := s.take()
	if len(asked) != 1 || asked[0].GetDomain() != "mcp" {
		t.Fatalf("want one question to the domain, got %v", asked)
	}
	var got []string
	for _, desc := range asked[0].GetDescriptors() {
		line := fmt.Sprint(desc.GetHitsAddend().GetValue())
		for _, e := range desc.GetEntries() {
			line += " " + e.GetKey() + "=" + e.GetValue()
		}
		if o := desc.GetLimit(); o != nil {
			line += fmt.Sprintf(" %d/%s", o.GetRequestsPerUnit(), o.GetUnit())
		}
		got = append(got, line)
	}
	want := []string{
		"3 rule=all",
		"2 rule=each upstream=a caller=people subject=glGoYm_xWZQ_OhNJOMfroQ tool=x 600/MINUTE",
		"1 rule=each upstream=a caller=people subject=glGoYm_xWZQ_OhNJOMfroQ tool=yGh6CKpdbtIEQyj6aml6uA 600/MINUTE",
	}
	if !slices.Equal(got, want) {
		t.Errorf("want %q\ngot %q", want, got)
	}
	if w := count.take(); w != "up:true ok" {
		t.Errorf("got %q", w)
	}
	// A local limit is held first, and what a refusal of the service took of it is given back.
	s.set(respond(over, over, 10, 90*time.Second))
	d = by("a", "ci")
	for range 5 {
		if reason, wait := l.Admit(t.Context(), &d); reason != policy.RateLimited || wait != 90*time.Second {
			t.Errorf("want the service's word, got %v %s", reason, wait)
		}
	}
	s.set(respond(ok, ok, 10, 0))
	s.take()
	for i, want := range []policy.Reason{policy.Allowed, policy.Allowed, policy.RateLimited} {
		if reason, _ := l.Admit(t.Context(), &d); reason != want {
			t.Errorf("call %d: want %v, got %v", i+1, want, reason)
		}
	}
	if n := len(s.take()); n != 2 {
		t.Errorf("want the service asked for what a local limit lets pass, got %d", n)
	}
}

// TestServiceAnswers: what is made of each.
func TestServiceAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error)
		calls  int
		wait   string // empty for allowed
		counts string
	}{
		"over":                        {respond(over, over, 5, 7*time.Second), 1, "7s", "up:true over_limit limited:all"},
		"over, reset at once":         {respond(over, over, 5, 0), 1, "1s", "up:true over_limit limited:all"},
		"a batch larger than a limit": {respond(over, over, 5, 7*time.Second), 6, "0s", "up:true over_limit limited:all"},
		"over, and none says which":   {respond(over, ok, 5, 7*time.Second), 1, "1s", "up:true over_limit limited:all"},
		"shadow mode":                 {respond(ok, over, 5, 0), 1, "", "up:true ok"},
		"no limit of that name": {func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
			return &rlsv3.RateLimitResponse{OverallCode: ok, Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{{Code: ok}}}, nil
		}, 1, "", "up:true unmatched"},
		"unlimited": {func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
			return &rlsv3.RateLimitResponse{OverallCode: ok, Statuses: []*rlsv3.RateLimitResponse_DescriptorStatus{{Code: ok, LimitRemaining: 1<<32 - 1}}}, nil
		}, 1, "", "up:true ok"},
		"an unknown code": {respond(rlsv3.RateLimitResponse_UNKNOWN, ok, 5, 0), 1, "1s", "failed limited:all"},
		"too few statuses": {func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
			return &rlsv3.RateLimitResponse{OverallCode: ok}, nil
		}, 1, "1s", "failed limited:all"},
		"an error": {func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
			return nil, status.Error(codes.Unknown, "its Redis is down")
		}, 1, "1s", "failed limited:all"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, count := &scripted{answer: c.answer}, &tally{}
			l := gate(t, count.config(newClock().now), fleet(s.serve(t), "refuse", "{name: all, fleet: true}"))
			d := by("a", "ci", make([]string, c.calls)...)
			reason, wait := l.Admit(t.Context(), &d)
			got := ""
			if reason != policy.Allowed {
				got = wait.String()
			}
			if words := count.take(); got != c.wait || words != c.counts {
				t.Errorf("want %q and %q, got %q and %q", c.wait, c.counts, got, words)
			}
		})
	}
}

// TestBrokenServiceCostsNothing: after three failures in a row one call in a
// second asks, and all others go by on_failure at once.
func TestBrokenServiceCostsNothing(t *testing.T) {
	t.Parallel()
	for _, choice := range []struct {
		word   string
		reason policy.Reason
	}{{"allow", policy.Allowed}, {"refuse", policy.RateLimited}} {
		t.Run(choice.word, func(t *testing.T) {
			t.Parallel()
			clock, count := newClock(), &tally{}
			s := &scripted{answer: func(*rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) { return nil, errors.New("down") }}
			l := gate(t, count.config(clock.now), fleet(s.serve(t), choice.word, "{name: all, fleet: true}", "{name: local, rate: 1000/s}"))
			calls := func(n int) {
				t.Helper()
				for range n {
					d := by("a", "ci")
					if reason, wait := l.Admit(t.Context(), &d); reason != choice.reason || reason != policy.Allowed && wait != time.Second {
						t.Fatalf("want %v, got %v after %s", choice.reason, reason, wait)
					}
				}
			}
			want := func(n int, state string) {
				t.Helper()
				if got := len(s.take()); got != n {
					t.Errorf("want the service asked %d times, got %d", n, got)
				}
				if got := l.Status().Service; got.State != state || (got.Error == "") != (state == "up") {
					t.Errorf("want %s, got %+v", state, got)
				}
			}
			calls(2)
			want(2, "untried")
			calls(100)
			want(1, "down")
			clock.pass(999 * time.Millisecond)
			calls(100)
			want(0, "down")
			for range 12 { // more than one connection's worth
				clock.pass(time.Second)
				calls(20)
				want(1, "down")
			}
			s.set(respond(ok, ok, 10, 0))
			clock.pass(time.Second)
			d := by("a", "ci")
			l.Admit(t.Context(), &d)
			want(1, "up")
			if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed {
				t.Errorf("want it asked again, got %v", reason)
			}
			want(1, "up")
			words := count.take()
			if strings.Count(words, "up:") != 2 || !strings.HasSuffix(words, "up:true ok ok") || strings.Count(words, "skipped") != 99+100+12*19 {
				t.Errorf("got %s", words)
			}
			// The local limits hold meanwhile.
			if s.set(nil); choice.reason == policy.Allowed && strings.Contains(words, "limited") {
				t.Errorf("want nobody limited, got %s", words)
			}
		})
	}
}

// TestCallerThatLeaves says nothing about the service.
func TestCallerThatLeaves(t *testing.T) {
	t.Parallel()
	s := &scripted{answer: respond(ok, ok, 10, 0)}
	l := gate(t, (&tally{}).config(newClock().now), fleet(s.serve(t), "refuse", "{name: all, fleet: true}"))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	d := by("a", "ci")
	for range 10 {
		if reason, _ := l.Admit(gone, &d); reason != policy.RateLimited {
			t.Errorf("want refused, got %v", reason)
		}
	}
	if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed {
		t.Errorf("want the service asked as before, got %v", reason)
	}
}

// TestServiceOfAnotherPolicy: a reload that says nothing new keeps the connection
// and what is known of the service, one that does not forgets it.
func TestServiceOfAnotherPolicy(t *testing.T) {
	t.Parallel()
	s, count := &scripted{answer: respond(ok, ok, 10, 0)}, &tally{}
	block := fleet(s.serve(t), "refuse", "{name: all, fleet: true}")
	l := gate(t, count.config(newClock().now), block)
	d := by("a", "ci")
	l.Admit(t.Context(), &d)
	use(t, l, block+"\n")
	l.Admit(t.Context(), &d)
	if got := count.take(); got != "up:true ok ok" {
		t.Errorf("the same: got %q", got)
	}
	use(t, l, fleet(s.serve(t), "allow", "{name: all, fleet: true}"))
	l.Admit(t.Context(), &d)
	if got := count.take(); got != "off up:true ok" {
		t.Errorf("another: got %q", got)
	}
	use(t, l, rules("{rate: 1/s}"))
	if got := count.take(); got != "off" || l.Status().Service != nil {
		t.Errorf("none: got %q", got)
	}
}

// TestFilesOfTheConnection are read when a policy is loaded: a mistake there is
// one of the policy.
func TestFilesOfTheConnection(t *testing.T) {
	t.Parallel()
	l := limits.New(limits.Config{Now: newClock().now, Log: zerolog.Nop()})
	for file, want := range map[string]string{
		"ca: /nowhere/ca.pem": "limits.service: tls.ca: open /nowhere/ca.pem",
		"certificate: /nowhere/a.pem, private_key: /nowhere/a.key": "limits.service: tls.certificate: open /nowhere/a.pem",
		"ca: service_test.go": "limits.service: tls.ca: want PEM certificates",
	} {
		block := strings.Replace(fleet("ratelimit.example:8081", "refuse", "{name: all, fleet: true}"), "timeout", "tls: {"+file+"}, timeout", 1)
		if p, err := l.Build(parse(t, block)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", file, want, err)
			l.Drop(p)
		}
	}
}
