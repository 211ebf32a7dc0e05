package policy

import (
	"reflect"
	"strings"
	"testing"
)

func TestExpand(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"A": "1", "B_2": "two", "NL": "x\n", "CRLF": "x\r\n", "NL2": "x\n\n", "REF": "${A}$$", "E": ""}
	env := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	for in, want := range map[string]string{
		"":               "",
		"plain":          "plain",
		"${A}":           "1",
		"x${A}y${B_2}z":  "x1ytwoz",
		"$$":             "$",
		"$${A}":          "${A}",
		"$$${A}":         "$1",
		"${REF}":         "${A}$$",
		"[${NL}${CRLF}]": "[xx]",
		"${NL2}":         "x\n",
		"${E}":           "",
		"}{":             "}{",
	} {
		if got, err := Expand(in, env); err != nil || got != want {
			t.Errorf("Expand(%q): want %q, got %q, %v", in, want, got, err)
		}
	}
	for in, want := range map[string]string{
		"${MISSING}":     "MISSING is not set",
		"${A":            "close it",
		"${":             "close it",
		"${}":            "not a variable name",
		"${1A}":          "not a variable name",
		"${hunter2-abc}": "not a variable name",
		"${${A}}":        "not a variable name",
		"$A":             "$$ for a literal",
		"x$":             "$$ for a literal",
		"hunter2$ ${A}":  "$$ for a literal",
	} {
		got, err := Expand(in, env)
		if err == nil || got != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("Expand(%q): want an error with %q, got %q, %v", in, want, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("S4: the error of Expand(%q) repeats the text: %v", in, err)
		}
	}
}

// TestDefaults reads every default tag: setDefault has no way to complain.
func TestDefaults(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() { //nolint:exhaustive // the kinds that hold others
		case reflect.Pointer, reflect.Map, reflect.Slice:
			walk(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		for f := range typ.Fields() {
			if text := f.Tag.Get("default"); text != "" {
				seen++
				v := reflect.New(f.Type).Elem()
				if setDefault(v, text); v.IsZero() {
					t.Errorf("%s.%s: the default %q is not one of its type", typ.Name(), f.Name, text)
				}
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[File]())
	if seen < 10 {
		t.Errorf("want at least 10 defaults, got %d", seen)
	}
}
