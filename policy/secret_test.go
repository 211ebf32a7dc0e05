package policy

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"text/template"

	"github.com/rs/zerolog" //nolint:depguard // policy never logs; the test proves that those who do show no secret
	"go.yaml.in/yaml/v3"
)

const leakCanary = "canary-SECRET+value/0123456789"

// leaks finds the canary raw and in the codings a printer may choose.
func leaks(out string) bool {
	forms := []string{
		leakCanary, url.QueryEscape(leakCanary), url.PathEscape(leakCanary), base64.StdEncoding.EncodeToString([]byte(leakCanary)),
		base64.URLEncoding.EncodeToString([]byte(leakCanary)), hex.EncodeToString([]byte(leakCanary)), fmt.Sprintf("% x", leakCanary),
		strings.Trim(fmt.Sprintf("%d", []byte(leakCanary)), "[]"), "canary-SECRET", "0123456789",
	}
	for _, form := range forms {
		if strings.Contains(strings.ToLower(out), strings.ToLower(form)) {
			return true
		}
	}
	return false
}

type withSecret struct {
	Shown  Secret
	hidden Secret
	Ptr    *Secret
	Any    any
	List   []Secret
	Map    map[string]Secret
}

type embedsSecret struct{ Secret }

func holders() map[string]any {
	s := NewSecret(leakCanary)
	w := withSecret{Shown: s, hidden: s, Ptr: &s, Any: s, List: []Secret{s}, Map: map[string]Secret{"k": s}}
	return map[string]any{
		"Secret":               s,
		"*Secret":              &s,
		"struct":               w,
		"*struct":              &w,
		"unexported field":     struct{ s Secret }{s},
		"unexported pointer":   struct{ s *Secret }{&s},
		"embedded":             embedsSecret{s},
		"slice":                []Secret{s},
		"slice of pointers":    []*Secret{&s},
		"array":                [1]Secret{s},
		"map":                  map[string]Secret{"k": s},
		"map key":              map[Secret]int{s: 1},
		"any in a slice":       []any{s},
		"struct in unexported": struct{ w withSecret }{w},
		"error":                fmt.Errorf("fetching with %v: %w", s, errors.New("refused")),
	}
}

// Every verb and flag, for every way to hold a Secret.
func TestSecretIsNeverFormatted(t *testing.T) {
	verbs := []string{
		"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%b", "%o", "%O", "%c", "%U", "%e", "%g", "%p", "%T", "%w",
		"%#x", "% x", "%+q", "%#q", "%40v", "%-40s", "%.3s", "%08d", "%z", "%[2]v", "%!",
	}
	forms := 0
	for holder, v := range holders() {
		for _, verb := range verbs {
			forms++
			if out := fmt.Sprintf(verb, v); leaks(out) {
				t.Errorf("%s of %s: %s", verb, holder, out)
			}
			if err := fmt.Errorf(verb, v); leaks(err.Error()) {
				t.Errorf("error %s of %s: %s", verb, holder, err)
			}
		}
		for name, out := range map[string]string{"Sprint": fmt.Sprint(v), "Sprintln": fmt.Sprintln(v)} {
			forms++
			if leaks(out) {
				t.Errorf("%s of %s: %s", name, holder, out)
			}
		}
	}
	if forms < 37 {
		t.Errorf("want 37 printed forms or more, got %d", forms)
	}
}

func TestSecretIsNeverMarshalled(t *testing.T) {
	marshallers := map[string]func(any) string{
		"json":        func(v any) string { return text(json.Marshal(v)) },
		"json indent": func(v any) string { return text(json.MarshalIndent(v, "", " ")) },
		"yaml":        func(v any) string { return text(yamlOf(v)) },
		"xml":         func(v any) string { return text(xml.Marshal(v)) },
		"gob":         gobOf,
		"template": func(v any) string {
			var b bytes.Buffer
			err := template.Must(template.New("").Parse(`{{.}} {{printf "%q" .}} {{print .}}`)).Execute(&b, v)
			return text(b.Bytes(), err)
		},
	}
	for name, marshal := range marshallers {
		for holder, v := range holders() {
			if out := marshal(v); leaks(out) {
				t.Errorf("%s of %s: %s", name, holder, out)
			}
		}
	}
}

// yamlOf turns a panic of the library into an error: its text is output too.
func yamlOf(v any) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: %v", p)
		}
	}()
	return yaml.Marshal(v)
}

func gobOf(v any) string {
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(v)
	return text(b.Bytes(), err)
}

func text(b []byte, err error) string { return fmt.Sprintf("%s %v", b, err) }

func TestSecretIsNeverLogged(t *testing.T) {
	for holder, v := range holders() {
		var b bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
			l := slog.New(h)
			l.Info("x", "v", v, slog.Group("g", slog.Any("v", v)))
			l.With("v", v).Info(fmt.Sprint(v))
		}
		for _, out := range []io.Writer{&b, zerolog.ConsoleWriter{Out: &b, NoColor: true}} {
			w := zerolog.New(out)
			w.Info().Interface("v", v).Any("w", v).Msgf("%v %+v", v, v)
			w.Info().Fields(map[string]any{"v": v}).Msg("x")
			w.Info().Type("t", v).Send()
			w.Error().Err(fmt.Errorf("using %+v", v)).Send()
			if s, ok := v.(fmt.Stringer); ok {
				w.Info().Stringer("v", s).Send()
			}
			child := w.With().Interface("v", v).Logger()
			child.Info().Send()
		}
		if leaks(b.String()) {
			t.Errorf("%s: %s", holder, b.String())
		}
	}
}

// The forms an operator meets show that there was a secret.
func TestSecretShowsStars(t *testing.T) {
	s := NewSecret(leakCanary)
	for name, out := range map[string]string{
		"%v": fmt.Sprintf("%v", s), "%+v": fmt.Sprintf("%+v", s), "%#v": fmt.Sprintf("%#v", s), "%q": fmt.Sprintf("%q", s),
		"%d": fmt.Sprintf("%d", any(s)), "String": s.String(), "GoString": s.GoString(), "zero": fmt.Sprint(Secret{}),
		"in a struct": fmt.Sprintf("%v", struct{ S Secret }{s}), "json": text(json.Marshal(s)), "yaml": text(yamlOf(s)),
		"xml": text(xml.Marshal(s)),
	} {
		if !strings.Contains(out, "***") {
			t.Errorf("%s: want ***, got %s", name, out)
		}
	}
}

func TestSecretReveal(t *testing.T) {
	if s := NewSecret(leakCanary); s.Reveal() != leakCanary || s.IsZero() {
		t.Error("want the value back")
	}
	if s := NewSecret(""); s.Reveal() != "" || s.IsZero() {
		t.Error("an empty secret is set all the same")
	}
	var zero Secret
	if zero.Reveal() != "" || !zero.IsZero() {
		t.Error("want the zero Secret to be empty and unset")
	}
}

// leaks must be able to fail.
func TestLeaksFindsTheCanary(t *testing.T) {
	for _, out := range []string{
		leakCanary, "x" + hex.EncodeToString([]byte(leakCanary)), fmt.Sprintf("%X", leakCanary), fmt.Sprintf("%d", []byte(leakCanary)),
		fmt.Sprintf("%+v", struct{ p []string }{[]string{leakCanary}}), base64.StdEncoding.EncodeToString([]byte(leakCanary)),
	} {
		if !leaks(out) {
			t.Errorf("did not find it in %s", out)
		}
	}
}

func TestSecretRef(t *testing.T) {
	for want, ref := range map[string]SecretRef{
		"Bearer ${KEY}":            {SecretText, "Bearer ${KEY}"},
		"{env: KEY}":               {SecretEnv, "KEY"},
		"{file: /run/secrets/key}": {SecretFile, "/run/secrets/key"},
		"{vault: {mount: kv/one, path: a&b/c, key: d e=1}}":      VaultRef("kv/one", "a&b/c", "d e=1"),
		"{aws: {secret: mcp/a+b}}":                               AWSRef("mcp/a+b", ""),
		"{aws: {secret: mcp/a, key: b}}":                         AWSRef("mcp/a", "b"),
		"{gcp: {secret: projects/p/secrets/s, version: latest}}": GCPRef("projects/p/secrets/s", "latest"),
		"": {},
	} {
		if got := ref.String(); got != want {
			t.Errorf("want %q, got %q", want, got)
		}
		if ref.IsZero() != (want == "") {
			t.Errorf("%q: IsZero is %v", want, ref.IsZero())
		}
	}
}
