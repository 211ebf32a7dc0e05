package policy

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v3"
)

func resolvedSchema(t *testing.T) *jsonschema.Resolved {
	t.Helper()
	var s jsonschema.Schema
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	resolved, err := s.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}

// instance reads a policy file as any other YAML reader would.
func instance(t *testing.T, file string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(readFile(t, file), &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSchemaAcceptsGoodFiles: an editor does not mark what Parse takes, and
// between them the good files have every key there is.
func TestSchemaAcceptsGoodFiles(t *testing.T) {
	t.Parallel()
	schema := resolvedSchema(t)
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "unquoted.yaml") {
			continue // ${NAME} inside of braces is not YAML to others
		}
		v := instance(t, file)
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		see(reflect.TypeFor[File](), v, seen)
	}
	for _, key := range allKeys(reflect.TypeFor[File](), nil) {
		if !seen[key] {
			t.Errorf("want every key in a good file, got none with %s", key)
		}
	}
}

// TestSchemaRefusesBadFiles: what the types alone can tell is told by the schema too.
func TestSchemaRefusesBadFiles(t *testing.T) {
	t.Parallel()
	schema := resolvedSchema(t)
	for _, name := range []string{
		"list_document", "version_missing", "version_two", "version_text", "no_upstreams", "unknown_key_top",
		"unknown_key_nested", "unknown_key_later_feature", "wrong_types", "empty_strings", "duration_units", "enums",
		"names", "url_missing", "caller_kinds", "credential_shapes", "secret_literal", "secret_sources",
		"server_tls", "upstreams_null",
	} {
		if err := schema.Validate(instance(t, "testdata/bad/"+name+".yaml")); err == nil {
			t.Errorf("want the schema to refuse bad/%s.yaml", name)
		}
	}
}

// block returns the struct type below pointers and maps.
func block(t reflect.Type) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Map || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t, t.Kind() == reflect.Struct
}

// allKeys lists every Type.key below t.
func allKeys(t reflect.Type, known []string) []string {
	t, ok := block(t)
	if !ok {
		return known
	}
	for f := range t.Fields() {
		name := t.Name() + "." + f.Tag.Get("yaml")
		if key := f.Tag.Get("yaml"); key == "" || key == "-" || slices.Contains(known, name) {
			continue
		}
		known = allKeys(f.Type, append(known, name))
	}
	return known
}

// see marks every Type.key that a file uses.
func see(t reflect.Type, v any, seen map[string]bool) {
	if list, ok := v.([]any); ok && t.Kind() == reflect.Slice {
		for _, item := range list {
			see(t.Elem(), item, seen)
		}
		return
	}
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Map {
		for _, item := range m {
			see(t.Elem(), item, seen)
		}
		return
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for f := range t.Fields() {
		if item, has := m[f.Tag.Get("yaml")]; has {
			seen[t.Name()+"."+f.Tag.Get("yaml")] = true
			see(f.Type, item, seen)
		}
	}
}
