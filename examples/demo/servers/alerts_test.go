package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestAlertsAreTakenSigned(t *testing.T) {
	t.Parallel()
	const key = "made-up-key-of-signatures-0123456789"
	now := time.Unix(1_800_000_000, 0)
	body := `{"data":{"alerts":[{"status":"firing","rule":"errors","upstream":"a","summary":"It fails."}]}}`
	sign := func(key, at, body string) string {
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte("msg_1." + at + "." + body))
		return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	at := strconv.FormatInt(now.Unix(), 10)
	old := strconv.FormatInt(now.Add(-6*time.Minute).Unix(), 10)
	for name, c := range map[string]struct {
		at, signature, body string
		want                int
	}{
		"good":           {at, sign(key, at, body), body, http.StatusNoContent},
		"two keys":       {at, "v1,AAAA " + sign(key, at, body), body, http.StatusNoContent},
		"another key":    {at, sign("another", at, body), body, http.StatusUnauthorized},
		"another body":   {at, sign(key, at, body), body + " ", http.StatusUnauthorized},
		"old":            {old, sign(key, old, body), body, http.StatusUnauthorized},
		"no time":        {"", sign(key, "", body), body, http.StatusUnauthorized},
		"no signature":   {at, "", body, http.StatusUnauthorized},
		"signed, broken": {at, sign(key, at, "{"), "{", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			h := &receiver{key: []byte(key), log: &lines{w: &out}, now: func() time.Time { return now }}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/alerts", strings.NewReader(c.body))
			r.Header.Set("Webhook-Id", "msg_1")
			r.Header.Set("Webhook-Timestamp", c.at)
			r.Header.Set("Webhook-Signature", c.signature)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			said := out.String() == "alerts: firing errors a: It fails.\n"
			if w.Code != c.want || said != (c.want == http.StatusNoContent) {
				t.Errorf("want %d, got %d, said %s", c.want, w.Code, fmt.Sprintf("%q", out.String()))
			}
		})
	}
}
