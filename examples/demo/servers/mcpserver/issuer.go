package mcpserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/modelcontextprotocol/go-sdk/auth"
)

const (
	// maxAnswer bounds what is read from the issuer, in bytes.
	maxAnswer = 1 << 20
	// keyInterval is the least time between two fetches of the keys: forged key
	// ids cannot make this server a client that floods the issuer.
	keyInterval = time.Second
)

// keySet is an issuer's JWKS, fetched when a token names a key that is not in it.
type keySet struct {
	url    string
	client *http.Client
	now    func() time.Time

	mu      sync.Mutex // guards what follows, and is held while fetching
	keys    jose.JSONWebKeySet
	fetched time.Time
}

// get returns the key of that id.
func (s *keySet) get(ctx context.Context, kid string) (*jose.JSONWebKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys.Key(kid); len(k) == 1 {
		return &k[0], nil
	}
	if now := s.now(); now.Sub(s.fetched) >= keyInterval {
		s.fetched = now
		var keys jose.JSONWebKeySet
		if err := get(ctx, s.client, s.url, &keys); err != nil {
			return nil, fmt.Errorf("reading the issuer's keys: %w", err)
		}
		s.keys = keys
	}
	if k := s.keys.Key(kid); len(k) == 1 {
		return &k[0], nil
	}
	return nil, fmt.Errorf("%w: unknown key %q", auth.ErrInvalidToken, kid)
}

// standing asks the issuer whether it still stands by the token of that id. No
// answer is not a yes.
func (v *verifier) standing(ctx context.Context, id string) error {
	if v.cfg.RevocationURL == "" {
		return nil
	}
	if id == "" {
		return fmt.Errorf("%w: no jti", auth.ErrInvalidToken)
	}
	// An answer without the member is not a yes either.
	var answer struct {
		Revoked *bool `json:"revoked"`
	}
	if err := get(ctx, v.cfg.Client, v.cfg.RevocationURL+"?"+url.Values{"jti": {id}}.Encode(), &answer); err != nil {
		return fmt.Errorf("asking the issuer about the token: %w", err)
	}
	if answer.Revoked == nil || *answer.Revoked {
		return fmt.Errorf("%w: revoked", auth.ErrInvalidToken)
	}
	return nil
}

// get decodes the JSON answer.
func get(ctx context.Context, client *http.Client, from string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("want status 200, got %d", resp.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(answer)
}
