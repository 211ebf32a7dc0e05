package secrets

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// canarySecret is in every value and in every answer that fails; no log and no
// error may repeat it.
const canarySecret = "canary-0451"

// syncLog is a log for several goroutines.
type syncLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// script is a reader that answers what the test says, and notes when it was asked.
type script struct {
	mu    sync.Mutex
	value string
	good  time.Duration
	err   error
	hang  bool
	asked []time.Time
}

func (r *script) set(value string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value, r.err = value, err
}

func (r *script) times() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]time.Time(nil), r.asked...)
}

func (r *script) read(ctx context.Context, _ policy.SecretRef) (string, time.Duration, error) {
	r.mu.Lock()
	r.asked = append(r.asked, time.Now())
	value, good, err, hang := r.value, r.good, r.err, r.hang
	r.mu.Unlock()
	if hang {
		<-ctx.Done()
		return "", 0, ctx.Err()
	}
	return value, good, err
}

// scripted is a Store whose stores are scripts, with even dice.
func scripted(log *syncLog, readers map[any]*script) *Store {
	s := New(Config{Log: zerolog.New(log), Dice: func() float64 { return 0.5 }})
	s.dial = func(settings any) reader { return readers[settings] }
	return s
}

func vaultNeeds(address string, refs ...policy.SecretRef) Needs {
	return Needs{Refs: refs, Stores: policy.SecretStores{Every: time.Minute, Vault: &policy.VaultStore{Address: address}}}
}

// TestO9PollBackoffAndLastGood walks one secret through an outage.
func TestO9PollBackoffAndLastGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncLog
		r := &script{err: answered(http.StatusServiceUnavailable, "")}
		s := scripted(&log, map[any]*script{policy.VaultStore{Address: "a"}: r})
		defer s.Close()
		ref := policy.VaultRef("secret", "p", "k")
		start := time.Now()
		if err := s.Require(vaultNeeds("a", ref)); err != nil {
			t.Fatal(err)
		}
		_, err := s.Secret(ref)
		var missing *UnavailableError
		if !errors.As(err, &missing) || missing.Ref != ref || !strings.Contains(err.Error(), "503") {
			t.Fatalf("down at start: %v", err)
		}
		if faults := s.Missing(); len(faults) != 1 || !strings.Contains(faults[0].Error(), ref.String()) {
			t.Errorf("missing: %v", faults)
		}
		time.Sleep(2 * time.Minute)
		var gaps []time.Duration
		at := r.times()
		for i := range at[1:] {
			gaps = append(gaps, at[i+1].Sub(at[i]))
		}
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			if gaps[i] != want*time.Second {
				t.Errorf("pause %d: want %s, got %s", i, want*time.Second, gaps[i])
			}
		}
		if n := strings.Count(log.String(), "cannot be read"); n != 1 {
			t.Errorf("the same failure %d times in the log, want once: %s", n, log.String())
		}
		r.set(canarySecret+"-1\n", nil)
		time.Sleep(lastRetry)
		if got := value(t, s, ref); got != canarySecret+"-1" || len(s.Missing()) != 0 {
			t.Errorf("after the outage: %q, missing %v", got, s.Missing())
		}
		r.set(canarySecret+"-2", nil)
		time.Sleep(time.Minute)
		if got := value(t, s, ref); got != canarySecret+"-2" {
			t.Errorf("after a change and one poll: %q", got)
		}
		for _, err := range []error{answered(503, ""), answered(403, ""), answered(404, ""), errors.New(canarySecret)} {
			r.set(canarySecret, err)
			time.Sleep(2 * time.Minute)
			if got := value(t, s, ref); got != canarySecret+"-2" {
				t.Errorf("with %v: %q, want the last good value", err, got)
			}
		}
		for _, bad := range []string{"", "\n", strings.Repeat("x", maxSize+1)} {
			r.set(bad, nil)
			time.Sleep(2 * time.Minute)
			if got := value(t, s, ref); got != canarySecret+"-2" {
				t.Errorf("with a value of %d bytes: %q, want the last good value", len(bad), got)
			}
		}
		if strings.Contains(log.String(), canarySecret) {
			t.Errorf("a secret is in the log: %s", log.String())
		}
		if time.Since(start) > time.Hour {
			t.Error("the test lost its way")
		}
	})
}

// TestASlowStoreDelaysNobody: while one store hangs, the others are read, and
// Require ends after its wait.
func TestASlowStoreDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncLog
		slow, quick := &script{hang: true}, &script{value: "q"}
		s := scripted(&log, map[any]*script{policy.VaultStore{Address: "a"}: slow, policy.AWSStore{Region: "r"}: quick})
		defer s.Close()
		dir := t.TempDir()
		put(t, filepath.Join(dir, "f"), "1")
		needs := vaultNeeds("a", file(filepath.Join(dir, "f")), policy.AWSRef("q", ""))
		for _, k := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"} {
			needs.Refs = append(needs.Refs, policy.VaultRef("m", "p", k))
		}
		needs.Stores.AWS = &policy.AWSStore{Region: "r"}
		start := time.Now()
		if err := s.Require(needs); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("Require took %s, want its wait of 5s", took)
		}
		quick.set("q2", nil)
		time.Sleep(time.Minute)
		if got := value(t, s, policy.AWSRef("q", "")); got != "q2" {
			t.Errorf("the quick store: %q", got)
		}
		if n := len(slow.times()); n > 60/10*perStore+perStore {
			t.Errorf("%d reads of a hanging store in a minute, want at most %d at a time", n, perStore)
		}
		if err := s.Missing(); len(err) != 9 || !strings.Contains(err[0].Error(), "in time") && !strings.Contains(err[0].Error(), "not answered yet") {
			t.Errorf("missing: %v", err)
		}
	})
}

// TestValidForComesFirst: a store may ask to be visited sooner than the poll.
func TestValidForComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &script{value: "v", good: 20 * time.Second}
		s := scripted(&syncLog{}, map[any]*script{policy.VaultStore{Address: "a"}: r})
		defer s.Close()
		if err := s.Require(vaultNeeds("a", policy.VaultRef("m", "p", "k"))); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		if n := len(r.times()); n != 3 {
			t.Errorf("%d reads in 50 s, want 3", n)
		}
	})
}

// TestReloadMovesStores: new settings of the same store keep the value until the
// first answer; another store does not inherit it; and a policy that did not come
// into force changes nothing.
func TestReloadMovesStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := answered(503, "")
		a, a2, b := &script{value: "from-a"}, &script{err: down}, &script{err: down}
		s := scripted(&syncLog{}, map[any]*script{
			policy.VaultStore{Address: "a"}: a, policy.VaultStore{Address: "a", CA: "ca"}: a2, policy.VaultStore{Address: "b"}: b,
		})
		defer s.Close()
		ref := policy.VaultRef("m", "p", "k")
		use := func(needs Needs, inForce bool) {
			t.Helper()
			if err := s.Require(needs); err != nil {
				t.Fatal(err)
			}
			if inForce {
				s.Retain(needs)
			}
		}
		first, same, other := vaultNeeds("a", ref), vaultNeeds("a", ref), vaultNeeds("b", ref)
		same.Stores.Vault.CA = "ca"
		use(first, true)
		use(other, false)
		if _, err := s.Secret(ref); err == nil {
			t.Error("another store inherits the value")
		}
		s.Retain(first)
		if got := value(t, s, ref); got != "from-a" {
			t.Errorf("after the way back: %q", got)
		}
		use(same, true)
		if got := value(t, s, ref); got != "from-a" {
			t.Errorf("the same store in another way: %q", got)
		}
		before := len(a.times()) + len(b.times())
		time.Sleep(10 * time.Minute)
		if after := len(a.times()) + len(b.times()); after != before {
			t.Errorf("stores that nobody needs were read %d times", after-before)
		}
		a2.set("from-a2", nil)
		time.Sleep(lastRetry)
		if got := value(t, s, ref); got != "from-a2" {
			t.Errorf("after it answered: %q", got)
		}
	})
}

// TestRequireIsAllOrNothing: a missing local secret leaves the stores alone.
func TestRequireIsAllOrNothing(t *testing.T) {
	r := &script{value: "v"}
	s := scripted(&syncLog{}, map[any]*script{policy.VaultStore{Address: "a"}: r})
	defer s.Close()
	ref := policy.VaultRef("m", "p", "k")
	if err := s.Require(vaultNeeds("a", ref, file(filepath.Join(t.TempDir(), "none")))); err == nil {
		t.Fatal("no error")
	}
	if _, err := s.Secret(ref); !errors.Is(err, ErrUnknown) || len(r.times()) != 0 {
		t.Errorf("after a failed Require: %v, %d reads", err, len(r.times()))
	}
}

// TestFailuresAreOurOwnWords: no error of the network or of an SDK gets out.
func TestFailuresAreOurOwnWords(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	tlsErr := get(t, server.URL)
	server.Close()
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"anything":    {errors.New(canarySecret), "cannot be used"},
		"in a URL":    {&url.Error{Op: "Get", URL: "https://" + canarySecret, Err: errors.New(canarySecret)}, "cannot be used"},
		"too slow":    {&url.Error{Op: "Get", URL: "https://" + canarySecret, Err: context.DeadlineExceeded}, "in time"},
		"no such":     {&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "vault.test"}}, "no such host"},
		"certificate": {tlsErr, "certificate"},
		"down":        {get(t, server.URL), "connection refused"},
	} {
		if got := describe(tc.err); !strings.Contains(got, tc.want) || strings.Contains(got, canarySecret) || strings.Contains(got, "\n") {
			t.Errorf("%s: want %q in %q", name, tc.want, got)
		}
	}
	if word("Access_Denied") == "" || word(canarySecret) != "" || word(strings.Repeat("x", 65)) != "" {
		t.Error("word lets something else through than a word")
	}
}

func get(t *testing.T, address string) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client(transport()).Do(req)
	if err == nil {
		_ = resp.Body.Close()
		t.Fatal("no error")
	}
	return err
}

// TestAnswersAreBounded: an endless answer ends, and a redirect is not followed.
func TestAnswersAreBounded(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/endless", http.StatusFound)
			return
		}
		for chunk := make([]byte, 1<<16); r.Context().Err() == nil; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	for path, want := range map[string]int{"/endless": maxAnswer, "/moved": 0} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client(transport()).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if read := b.Len(); read > maxAnswer || read < want {
			t.Errorf("%s: %d bytes, want %d", path, read, want)
		}
		if path == "/moved" && resp.StatusCode != http.StatusFound {
			t.Errorf("the redirect was followed: %d", resp.StatusCode)
		}
	}
}

// live is a Store on real readers, with short polls.
func live(t *testing.T, stores policy.SecretStores, refs ...policy.SecretRef) (*Store, *syncLog) {
	t.Helper()
	log := &syncLog{}
	s := New(Config{Log: zerolog.New(log), Wait: 20 * time.Second})
	t.Cleanup(s.Close)
	stores.Every = time.Second
	if err := s.Require(Needs{Refs: append(stores.Secrets(), refs...), Stores: stores}); err != nil {
		t.Fatal(err)
	}
	return s, log
}

// until waits for a condition, and fails the test after 15 s.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 15 s for %s", what)
		}
	}
}

func holds(s *Store, ref policy.SecretRef, want string) func() bool {
	return func() bool {
		v, err := s.Secret(ref)
		return err == nil && v.Reveal() == want
	}
}

// why returns the text of a secret's error.
func why(t *testing.T, s *Store, ref policy.SecretRef) string {
	t.Helper()
	_, err := s.Secret(ref)
	var missing *UnavailableError
	if !errors.As(err, &missing) {
		t.Fatalf("%s: want an UnavailableError, got %v", ref, err)
	}
	return missing.Error()
}

func tempFile(t *testing.T, content string) policy.SecretRef {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file(path)
}
