package policy

import (
	"encoding/json"
	"strings"
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
		if err := json.Unmarshal(r.Body(nil), &got); err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		if got.Version != "2.0" || got.ID != nil || got.Error.Code != wantCode(r) ||
			got.Error.Message != r.Text() || got.Error.Data.Reason != r.String() {
			t.Errorf("%s: got %s", r, r.Body(nil))
		}
	}
}

// wantCode is the status, but for the one reason that MCP has a code for (T10).
func wantCode(r Reason) int {
	if r == HeaderMismatch {
		return -32020
	}
	return r.Status()
}

func TestT14_BodyCopiesTheID(t *testing.T) {
	for id, want := range map[string]any{`"a\u0022b"`: `a"b`, "17": 17.0, "": nil, `"` + strings.Repeat("x", 200) + `"`: nil} {
		var got struct{ ID any }
		if err := json.Unmarshal(ToolDenied.Body([]byte(id)), &got); err != nil {
			t.Fatal(err)
		}
		if got.ID != want {
			t.Errorf("id %s: got %v, want %v", id, got.ID, want)
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
