package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const auditPage = "../../docs/audit.md"

// sampleAudit writes a log of two calls, the same each time, and returns its path.
func sampleAudit(t *testing.T, key string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	spec := &policy.Audit{File: path, Size: 1 << 20, Age: 24 * time.Hour} // not required: a slow machine refuses nothing
	secrets := auditSecrets(key)
	if key != "" {
		spec.Key = policy.SecretRef{Kind: policy.SecretEnv, Name: "AUDIT_KEY"}
	}
	var now atomic.Int64 // nanoseconds
	at := func(d time.Duration) {
		now.Store(time.Date(2026, 3, 9, 10, 15, 0, 0, time.UTC).Add(d).UnixNano())
	}
	at(0)
	log := audit.New(audit.Config{
		Secrets: secrets, Now: func() time.Time { return time.Unix(0, now.Load()) }, Log: zerolog.Nop(), Stdout: io.Discard,
	})
	change, err := log.Prepare(spec)
	if err != nil {
		t.Fatal(err)
	}
	change.Commit()
	decisions := []*extproc.Decision{
		{
			RequestID: []byte("d2b5c1f0-7c1e-9f0a-8a51-3b8f0c9ae001"), Upstream: "crm", Caller: "people", Issuer: "https://idp.company.com", Subject: "ann",
			Reason: policy.Allowed, Tool: "customer_lookup", Rule: 2, Attempt: 1, Token: "a1b2c3d4", CookiesKept: 1, CookiesDropped: 3, Took: 41 * time.Microsecond,
		},
		{
			RequestID: []byte("d2b5c1f0-7c1e-9f0a-8a51-3b8f0c9ae002"), Upstream: "crm", Caller: "people", Issuer: "https://idp.company.com", Subject: "bob",
			Reason: policy.ToolDenied, Tool: "customer_delete", Rule: 3, Attempt: 1, Took: 19 * time.Microsecond,
		},
	}
	for i, d := range decisions {
		at(time.Duration(i+1) * time.Second)
		if err := log.Record(d); err != nil {
			t.Fatal(err)
		}
	}
	at(3 * time.Second)
	for i, o := range []*extproc.Outcome{
		{Status: 200, Took: 38 * time.Millisecond, Own: 41 * time.Microsecond, Sent: 512, Received: 178, Token: "a1b2c3d4"},
		{Status: 403, Took: 2 * time.Millisecond, Own: 19 * time.Microsecond, Sent: 240, Received: 178, Refusal: "tool_denied"},
	} {
		d := decisions[i]
		o.RequestID, o.Upstream, o.Caller, o.Issuer, o.Subject, o.Tool = string(d.RequestID), d.Upstream, d.Caller, d.Issuer, d.Subject, d.Tool
		o.Reason, o.Decided, o.Attempts = d.Reason.String(), true, 1
		log.Ended(o)
	}
	log.Close()
	return path
}

// auditSecrets is a key.
type auditSecrets string

func (s auditSecrets) Secret(policy.SecretRef) (policy.Secret, error) {
	return policy.NewSecret(string(s)), nil
}

// TestAuditVerify: what the command says of a log, and of one that was changed.
func TestAuditVerify(t *testing.T) {
	t.Parallel()
	const key = "0123456789abcdef0123456789abcdef"
	plain, sealed := sampleAudit(t, ""), sampleAudit(t, key)
	whole, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte{'\n'})
	keyFile := filepath.Join(t.TempDir(), "audit.key")
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	edited := func(text []byte) string {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flipped := slices.Clone(whole)
	flipped[bytes.Index(flipped, []byte("customer_lookup"))] ^= 1
	var last audit.Line
	if err := json.Unmarshal(lines[5], &last); err != nil {
		t.Fatal(err)
	}
	head := fmt.Sprintf("%d:%s", last.Seq, last.Hash)
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string // in what is printed; FILE is the last argument
	}{
		{"whole", []string{plain}, 0, []string{"FILE: 6 lines, 1 to 6\n", "ok: 6 lines, unbroken from 1 to 6, without a key", "head: " + head + "\n"}},
		{"with its lock", []string{plain + ".lock", plain}, 0, []string{"ok: 6 lines"}},
		{"a flipped byte", []string{edited(flipped)}, 1, []string{"broken: FILE:2: its hash is not that of its bytes"}},
		{"a removed line", []string{edited(bytes.Join(slices.Concat(lines[:2], lines[3:]), nil))}, 1, []string{"broken: FILE:3: it is line 4 of the chain, and line 2 comes before it here: line 3 is missing"}},
		{"a reordered pair", []string{edited(bytes.Join([][]byte{lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]}, nil))}, 1, []string{"broken: FILE:2: it is line 3 of the chain", "line 2 stands at FILE:3"}},
		{"cut off", []string{edited(bytes.Join(lines[:4], nil))}, 0, []string{"not closed: it is still written to, or its writer was killed"}},
		{"cut off, and the head known", []string{"--head", head, edited(bytes.Join(lines[:4], nil))}, 1, []string{"broken: FILE:5: the log ends at line 4, and --head says that there was a line 6"}},
		{"cut off within a line", []string{edited(whole[:len(whole)-10])}, 0, []string{"bytes after the last line: it is being written, or its writer was killed"}},
		{"no beginning", []string{edited(bytes.Join(lines[1:], nil))}, 1, []string{"broken: FILE:1: every file begins with a line of the kind start, and this is line 2"}},
		{"no such file", []string{plain + ".1"}, 1, []string{"no such file or directory; give the paths of the files that audit.file names"}},
		{"with its key", []string{"--key-file", keyFile, sealed}, 0, []string{"unbroken from 1 to 6, with a key\n"}},
		{"with its key in a variable", []string{"--key-env", "SECRET", sealed}, 1, []string{"was not given; give all keys"}},
		{"without its key", []string{sealed}, 1, []string{"broken: FILE:1: its hash is made with a key; give that with --key-file or --key-env"}},
		{"no variable", []string{"--key-env", "NOTHING", sealed}, 1, []string{"environment variable NOTHING is not set"}},
		{"a bad head", []string{"--head", "6", plain}, 1, []string{"want SEQ:HASH"}},
		{"as JSON", []string{"-o", "json", plain}, 0, []string{`"ok": true`, `"lines": 6`, `"closed": true`}},
	} {
		env := map[string]string{"SECRET": strings.Repeat("another key ", 3)}
		got := program(t, env, append([]string{"audit", "verify"}, tc.args...)...)
		for _, want := range tc.want {
			if want = strings.ReplaceAll(want, "FILE", tc.args[len(tc.args)-1]); !strings.Contains(got.out+got.err, want) {
				t.Errorf("%s: want %q, got %s%s", tc.name, want, got.out, got.err)
			}
		}
		if got.code != tc.code || strings.Contains(got.out+got.err, key) {
			t.Errorf("%s: want status %d, got %d; %s%s", tc.name, tc.code, got.code, got.out, got.err)
		}
	}
}

// TestAuditPage: docs/audit.md says of lines what the code does, shows lines that the
// code wrote, and its commands print what it says they do.
func TestAuditPage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(auditPage)
	if err != nil {
		t.Fatal(err)
	}
	sample := sampleAudit(t, "")
	b, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	want := between(t, text, "lines", lineTable(t))
	want = between(t, want, "sample", "```json\n"+string(b)+"```\n")
	if *update {
		if err := os.WriteFile(auditPage, want, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(text, want) {
		t.Error("docs/audit.md is not of this code; run make golden")
	}
	bin := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "envoy-mcp-auth"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	blocks := consoleBlocks(string(text))
	if len(blocks) < 6 {
		t.Fatalf("%d commands found in docs/audit.md, want at least 6", len(blocks))
	}
	shell := exec.CommandContext(t.Context(), "bash")
	shell.Dir = filepath.Dir(sample)
	shell.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	runBlocks(t, "docs/audit.md", shell, blocks)
}

// lineTable lists the members of a line, from the comments of its type.
func lineTable(t *testing.T) string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../internal/audit/line.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var rows strings.Builder
	rows.WriteString("| member | in | what it says |\n| --- | --- | --- |\n")
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Line" {
			return true
		}
		for _, f := range spec.Type.(*ast.StructType).Fields.List {
			quoted, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			tag := reflect.StructTag(quoted)
			_, said, ok := strings.Cut(strings.Join(strings.Fields(f.Doc.Text()), " "), " is ")
			if !ok {
				t.Errorf("%s: want a comment of the form NAME is …", f.Names[0])
			}
			fmt.Fprintf(&rows, "| `%s` | %s | %s |\n", tag.Get("json"), strings.ReplaceAll(tag.Get("kinds"), " ", ", "), said)
			n++
		}
		return false
	})
	if n != reflect.TypeFor[audit.Line]().NumField() {
		t.Errorf("want all members of a line, got %d", n)
	}
	return rows.String()
}
