package policy

import (
	"encoding/json"
	"testing"
)

func TestBodyIsJSONRPCErrorForEveryReason(t *testing.T) {
	for _, r := range append(Reasons(), Undecided) {
		var got struct {
			Version string `json:"jsonrpc"`
			ID      any    `json:"id"`
			Error   struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
				Data    struct {
					Reason string `json:"reason"`
				} `json:"data"`
			} `json:"error"`
		}
		if err := json.Unmarshal(r.Body(), &got); err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		if got.Version != "2.0" || got.ID != nil || got.Error.Code != r.Status() ||
			got.Error.Message != r.Text() || got.Error.Data.Reason != r.String() {
			t.Errorf("%s: got %s", r, r.Body())
		}
	}
}

func TestRefusalBodyQuotes(t *testing.T) {
	text := "a \"quoted\" \\ text\nwith a line\tand a tab"
	var got struct{ Error struct{ Message string } }
	if err := json.Unmarshal(RefusalBody(403, "guard", text), &got); err != nil {
		t.Fatal(err)
	}
	if got.Error.Message != text {
		t.Errorf("want %q, got %q", text, got.Error.Message)
	}
}
