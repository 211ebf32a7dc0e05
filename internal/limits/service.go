package limits

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// tolerated is how many failures in a row it takes to stop asking.
	tolerated = 3
	// pause is how long nobody asks then, until one call tries again.
	pause = time.Second
	// redial is how many failures in a row a connection may have. The peer may be
	// gone without a word, and TCP would take a quarter of an hour to say so.
	redial = 10
	// verbatim bounds the name of a tool that stands in a descriptor as it is.
	verbatim = 128
)

// The results of asking the service.
const (
	// ResultOK: every limit has room.
	ResultOK = "ok"
	// ResultOver: a limit is reached.
	ResultOver = "over_limit"
	// ResultUnmatched: there was room, and for a rule no limit at all in the
	// service's configuration.
	ResultUnmatched = "unmatched"
	// ResultTimeout: no answer in time.
	ResultTimeout = "timeout"
	// ResultFailed: any other failure.
	ResultFailed = "failed"
	// ResultSkipped: not asked, since it failed just before.
	ResultSkipped = "skipped"
)

// Results lists every result, ok first.
func Results() []string {
	return []string{ResultOK, ResultOver, ResultUnmatched, ResultTimeout, ResultFailed, ResultSkipped}
}

// errSkipped is the failure of a call that was not made.
var errSkipped = errors.New("not asked")

// service asks the rate limit service.
type service struct {
	spec policy.LimitService
	cfg  *Config
	link *link

	fails atomic.Int64 // in a row
	again atomic.Int64 // when one may ask after too many, in ns of the Unix clock

	mu    sync.Mutex
	state string          // up, down, or empty before the first answer
	since time.Time       // of state
	cause string          // of the last failure
	told  map[string]bool // rules whose limit the service does not know
}

func newService(spec policy.LimitService, cfg *Config) (*service, error) {
	link, err := newLink(spec)
	if err != nil {
		return nil, fmt.Errorf("limits.service: %w", err)
	}
	return &service{spec: spec, cfg: cfg, link: link, told: map[string]bool{}}, nil
}

// close gives the connection up once calls in flight have ended.
func (s *service) close() { time.AfterFunc(time.Duration(s.spec.Timeout), s.link.close) }

// question is what a request asks the service: one descriptor for each rule, in
// step with the rules.
type question struct {
	rules   []*rule
	request rlsv3.RateLimitRequest
}

// add asks about n hits of one rule.
func (q *question) add(r *rule, d *extproc.Decision, tool []byte, n int) {
	desc := &ratelimitv3.RateLimitDescriptor{HitsAddend: wrapperspb.UInt64(uint64(n))} //nolint:gosec // a count
	entry := func(on bool, key, value string) {
		if on {
			desc.Entries = append(desc.Entries, &ratelimitv3.RateLimitDescriptor_Entry{Key: key, Value: value})
		}
	}
	entry(true, "rule", r.Name)
	entry(r.PerUpstream, "upstream", d.Upstream)
	entry(r.PerCaller, "caller", d.Caller)
	entry(r.PerSubject, "subject", subject(d))
	entry(r.PerTool, "tool", toolValue(tool))
	if r.Rate.Count > 0 {
		desc.Limit = &ratelimitv3.RateLimitDescriptor_RateLimitOverride{
			RequestsPerUnit: uint32(r.Rate.Count), Unit: unit(r.Rate.Every), //nolint:gosec // at most 31 bits
		}
	}
	q.rules = append(q.rules, r)
	q.request.Descriptors = append(q.request.Descriptors, desc)
	// For services that do not know that of a descriptor.
	q.request.HitsAddend = max(q.request.GetHitsAddend(), uint32(n)) //nolint:gosec // a count
}

// subject names a person without saying who it is: the service's keys end up in
// Redis and in its metrics.
func subject(d *extproc.Decision) string {
	if d.Subject == "" {
		return d.Caller
	}
	return digest(d.Issuer + "\n" + d.Subject)
}

// toolValue keeps what a caller can choose short and printable.
func toolValue(tool []byte) string {
	if len(tool) > verbatim || strings.ContainsFunc(string(tool), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return digest(string(tool))
	}
	return string(tool)
}

// digest is the first 128 bits of a SHA-256, in base64url.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

func unit(every time.Duration) typev3.RateLimitUnit {
	switch {
	case every <= time.Second:
		return typev3.RateLimitUnit_SECOND
	case every <= time.Minute:
		return typev3.RateLimitUnit_MINUTE
	case every <= time.Hour:
		return typev3.RateLimitUnit_HOUR
	}
	return typev3.RateLimitUnit_DAY
}

// ask returns the rule that refuses and when to try again, or nil. Nobody waits
// for a service that failed just before.
func (s *service) ask(ctx context.Context, q *question) (*rule, time.Duration) {
	answer, err := s.call(ctx, q)
	if err != nil {
		s.failed(ctx, err)
		if s.spec.Refuse {
			return q.rules[0], pause
		}
		return nil, 0
	}
	s.worked()
	by, wait := q.verdict(answer)
	switch {
	case by != nil:
		s.asked(ResultOver)
	case s.unmatched(q, answer):
		s.asked(ResultUnmatched)
	default:
		s.asked(ResultOK)
	}
	return by, wait
}

func (s *service) call(ctx context.Context, q *question) (*rlsv3.RateLimitResponse, error) {
	if !s.may() {
		return nil, errSkipped
	}
	q.request.Domain = s.spec.Domain
	bounded, cancel := context.WithTimeout(ctx, time.Duration(s.spec.Timeout))
	defer cancel()
	answer, err := s.link.client().ShouldRateLimit(bounded, &q.request)
	if err != nil {
		return nil, err
	}
	over := answer.GetOverallCode()
	if len(answer.GetStatuses()) != len(q.rules) || over != rlsv3.RateLimitResponse_OK && over != rlsv3.RateLimitResponse_OVER_LIMIT {
		return nil, errors.New("the answer is none of the protocol envoy.service.ratelimit.v3")
	}
	return answer, nil
}

// verdict returns the rule that wants the longest wait. Overall, a service in
// shadow mode says that all is well.
func (q *question) verdict(answer *rlsv3.RateLimitResponse) (by *rule, wait time.Duration) {
	if answer.GetOverallCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
		return nil, 0
	}
	a := attempt{}
	for i, st := range answer.GetStatuses() {
		if st.GetCode() != rlsv3.RateLimitResponse_OVER_LIMIT {
			continue
		}
		wait := max(st.GetDurationUntilReset().AsDuration(), time.Second)
		if limit := st.GetCurrentLimit(); limit != nil && q.request.GetDescriptors()[i].GetHitsAddend().GetValue() > uint64(limit.GetRequestsPerUnit()) {
			wait = 0 // no window is large enough
		}
		a.refuse(q.rules[i], wait)
	}
	if a.by == nil {
		return q.rules[0], time.Second
	}
	return a.by, a.wait
}

// unmatched finds rules that the service knows no limit for, and tells the log
// of each once: somebody relies on them.
func (s *service) unmatched(q *question, answer *rlsv3.RateLimitResponse) (found bool) {
	for i, st := range answer.GetStatuses() {
		// One that is unlimited by configuration has all remaining.
		if st.GetCurrentLimit() != nil || st.GetLimitRemaining() > 0 {
			continue
		}
		found = true
		s.mu.Lock()
		told := s.told[q.rules[i].Name]
		s.told[q.rules[i].Name] = true
		s.mu.Unlock()
		if !told {
			s.cfg.Log.Warn().Str("rule", q.rules[i].Name).Str("domain", s.spec.Domain).
				Msg("the rate limit service knows no limit for this rule, so it holds nobody; add it to the service's configuration")
		}
	}
	return found
}

// may reports whether to ask: always, until it failed too often, and then one
// call in each pause.
func (s *service) may() bool {
	if s.fails.Load() < tolerated {
		return true
	}
	now, again := s.cfg.Now().UnixNano(), s.again.Load()
	return now >= again && s.again.CompareAndSwap(again, now+int64(pause))
}

// failed notes a failure. One that the caller caused, by going away, says nothing
// about the service.
func (s *service) failed(ctx context.Context, err error) {
	switch {
	case errors.Is(err, errSkipped):
		s.asked(ResultSkipped)
		return
	case status.Code(err) == codes.DeadlineExceeded:
		s.asked(ResultTimeout)
	default:
		s.asked(ResultFailed)
	}
	if ctx.Err() != nil {
		return
	}
	now := s.cfg.Now()
	n := s.fails.Add(1)
	if n%redial == 0 {
		s.link.redial()
	}
	if n == tolerated {
		s.again.Store(now.Add(pause).UnixNano())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cause = err.Error()
	if n >= tolerated && s.state != "down" {
		s.state, s.since = "down", now
		s.cfg.Log.Error().Err(err).Str("address", s.spec.Address).Bool("refuse", s.spec.Refuse).
			Msg("the rate limit service cannot be asked; calls go by limits.service.on_failure")
		s.up(false)
	}
}

func (s *service) worked() {
	if s.fails.Load() == 0 && s.again.Load() == -1 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails.Store(0)
	s.again.Store(-1) // it worked once
	if s.state == "up" {
		return
	}
	if s.state == "down" {
		s.cfg.Log.Info().Str("address", s.spec.Address).Msg("the rate limit service answers again")
	}
	s.state, s.since = "up", s.cfg.Now()
	s.up(true)
}

func (s *service) asked(result string) {
	if s.cfg.Asked != nil {
		s.cfg.Asked(result)
	}
}

func (s *service) up(up bool) {
	if s.cfg.Up != nil {
		s.cfg.Up(up)
	}
}
