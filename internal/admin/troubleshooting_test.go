package admin

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the table of docs/troubleshooting.md anew")

// TestTroubleshooting holds the table of the docs to what the page says: every
// reason has a row, and both give the same advice.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	const page = "../../docs/troubleshooting.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	from, to := bytes.Index(text, []byte("<!-- advice:begin")), bytes.Index(text, []byte("<!-- advice:end"))
	if from < 0 || to < from {
		t.Fatalf("%s has no markers for its table", page)
	}
	from += bytes.IndexByte(text[from:], '\n') + 1
	if want := adviceTable(); *update {
		if err := os.WriteFile(page, []byte(string(text[:from])+want+string(text[to:])), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if string(text[from:to]) != want {
		t.Errorf("the table of %s is not what the page says; run make golden", page)
	}
}

func adviceTable() string {
	var b strings.Builder
	b.WriteString("| reason | status | what it means | what to do |\n| --- | --- | --- | --- |\n")
	for _, r := range policy.Reasons() {
		if r != policy.Allowed {
			a := adviseOn(r)
			fmt.Fprintf(&b, "| `%s` | %d | %s | %s |\n", r, r.Status(), a.Means, a.Do)
		}
	}
	return b.String()
}
