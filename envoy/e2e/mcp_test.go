package e2e_test

import (
	"net/http"
	"testing"
)

func TestSmoke(t *testing.T) {
	r := start(t, standard)
	got := r.post("/alpha/mcp", "{}", "Authorization", "Bearer "+callerToken, "Cookie", "session_id=1; tracking="+canary)
	if got.status != http.StatusOK {
		t.Fatalf("got %v", got)
	}
	for _, a := range r.up("alpha").take() {
		t.Logf("%s", a.Head)
	}
	if got := r.get2("/beta/mcp", "authorization: Bearer "+callerToken); got.status != 200 {
		t.Fatalf("got %v", got)
	}
	for _, a := range r.up("beta").take() {
		t.Logf("%s", a.Head)
	}
}
