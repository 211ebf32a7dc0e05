package tokens

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestO6_SealedForOnePlace: what was sealed opens with the same secret at the same
// place and unchanged, and in no other way.
func TestO6_SealedForOnePlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringN(leastKey, 64, -1).Draw(t, "secret")
		place := rapid.String().Draw(t, "place")
		k := kept{
			Access:  rapid.StringMatching(`[A-Za-z0-9._~+/-]{1,200}=?`).Draw(t, "access"),
			Life:    time.Duration(rapid.Int64Range(1, int64(24*time.Hour)).Draw(t, "life")),
			Refresh: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "refresh")),
			Scope:   rapid.StringMatching(`[a-z.: ]{0,30}`).Draw(t, "scope"),
			At:      time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "at"), 0).UTC(),
		}
		b, err := seal(secret, place, k)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := unseal(secret, place, b); err != nil || got != k {
			t.Fatalf("want %v, got %v, %v", k, got, err)
		}
		if strings.Contains(string(b), k.Access) && len(k.Access) > 4 {
			t.Fatal("the token is readable")
		}
		if again, _ := seal(secret, place, k); string(again) == string(b) {
			t.Fatal("sealed twice with one nonce")
		}
		if other := rapid.String().Draw(t, "other place"); other != place {
			if _, err := unseal(secret, other, b); err == nil {
				t.Fatalf("a value of %q opens at %q", place, other)
			}
		}
		if other := rapid.StringN(leastKey, 64, -1).Draw(t, "other secret"); other != secret {
			if _, err := unseal(other, place, b); err == nil {
				t.Fatal("it opens with another secret")
			}
		}
		i := rapid.IntRange(0, len(b)-1).Draw(t, "byte")
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "change"))
		if _, err := unseal(secret, place, b); err == nil {
			t.Fatalf("it opens with byte %d changed", i)
		}
		if _, err := unseal(secret, place, b[:i]); err == nil {
			t.Fatal("it opens when cut")
		}
	})
}

// TestU12_PlaceOfWorkloads: two workloads with one policy do not share; a new JWT
// of the same one does.
func TestU12_PlaceOfWorkloads(t *testing.T) {
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".sig"
	}
	place := func(secret string, id key, workload string) string {
		p, err := placeOf(secret, id, workload)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one := place(fleetKey, key{1}, jwt(`{"iss":"https://k8s","sub":"a","exp":1}`))
	if one != place(fleetKey, key{1}, jwt(`{"iss":"https://k8s","sub":"a","exp":2}`)) {
		t.Error("want one place for two JWTs of one workload")
	}
	for name, other := range map[string]string{
		"subject":    place(fleetKey, key{1}, jwt(`{"iss":"https://k8s","sub":"b","exp":1}`)),
		"issuer":     place(fleetKey, key{1}, jwt(`{"iss":"https://other","sub":"a","exp":1}`)),
		"no subject": place(fleetKey, key{1}, jwt(`{"iss":"https://k8s"}`)),
		"credential": place(fleetKey, key{2}, jwt(`{"iss":"https://k8s","sub":"a","exp":1}`)),
		"secret":     place(fleetKey+"x", key{1}, jwt(`{"iss":"https://k8s","sub":"a","exp":1}`)),
		"none":       place(fleetKey, key{1}, ""),
	} {
		if other == one {
			t.Errorf("another %s: want another place", name)
		}
	}
	if place(fleetKey, key{1}, "not.jwt") == place(fleetKey, key{1}, "nor.this") {
		t.Error("want a place of its own for what names nobody")
	}
}
