package main

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
)

// keptReloads is how many attempts to load the policy are remembered.
const keptReloads = 10

// digest is the start of the SHA-256 of a policy file, enough to tell whether two
// replicas have the same one: sha256sum shows it too.
func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// after returns the state after one more attempt. err is empty when the policy was
// put in force. A failure that is tried again each few seconds stays one entry.
func (s *reloadState) after(at time.Time, hash, err string) *reloadState {
	n := &reloadState{LoadedAt: at, Hash: hash}
	attempt := admin.Reload{At: at, Count: 1, Hash: hash, Error: err}
	var before []admin.Reload
	if s != nil {
		before = s.Reloads
		if err != "" {
			n.LoadedAt, n.Hash, n.Error = s.LoadedAt, s.Hash, err
		}
	}
	if len(before) > 0 && err != "" && before[0].Error == err && before[0].Hash == hash {
		attempt.Count += before[0].Count
		before = before[1:]
	}
	n.Reloads = append([]admin.Reload{attempt}, before[:min(len(before), keptReloads-1)]...)
	return n
}
