package main

import (
	"encoding/json"
	"maps"
	"reflect"
	"strconv"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	variablePattern = `\$\{[A-Za-z_][A-Za-z0-9_]*\}`
	durationPattern = `^([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))*$|\$\{`
	sizePattern     = `^[0-9]+[KM]iB$|\$\{`
	ratePattern     = `^[0-9]+/(s|min|h|day)$|\$\{`
	namePattern     = `^[a-z0-9][a-z0-9_.-]{0,62}$`
)

// schemaJSON reflects the types and then adds what they cannot say: unions,
// descriptions, and the tags default, enum and required.
func schemaJSON(words comments) ([]byte, error) {
	r := &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Namer:                      definitionName,
		Mapper:                     union,
	}
	root := r.Reflect(policy.File{})
	oauth2 := r.Reflect(policy.OAuth2Spec{})
	root.Definitions["OAuth2"] = &jsonschema.Schema{
		Type: "object", Properties: oauth2.Properties, AdditionalProperties: jsonschema.FalseSchema,
	}
	maps.Copy(root.Definitions, oauth2.Definitions)
	root.Definitions["Credential"] = credential(words)
	root.Definitions["Secret"] = secret(words)
	for _, place := range []any{policy.VaultSecretSpec{}, policy.AWSSecretSpec{}, policy.GCPSecretSpec{}} {
		root.Definitions[definitionName(reflect.TypeOf(place))] = &jsonschema.Schema{
			Type: "object", Properties: r.Reflect(place).Properties, AdditionalProperties: jsonschema.FalseSchema,
		}
	}
	root.Title = "envoy-mcp-auth policy"
	root.Description = "The policy file of envoy-mcp-auth, version 1."
	describe(root, reflect.TypeFor[policy.File](), words)
	for _, t := range blocks() {
		if def, ok := root.Definitions[definitionName(t)]; ok && def.Properties != nil {
			describe(def, t, words)
		}
	}
	exactlyOne(root.Definitions["Caller"], "any", "key", "mtls", "jwt")
	exactlyOne(root.Definitions["VaultAuth"], "token", "approle", "kubernetes")
	text, err := json.MarshalIndent(root, "", "  ")
	return append(text, '\n'), err
}

func definitionName(t reflect.Type) string { return strings.TrimSuffix(t.Name(), "Spec") }

// union lays out the types that are written in more than one way.
func union(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[policy.CredentialSpec]():
		return &jsonschema.Schema{Ref: "#/$defs/Credential"}
	case reflect.TypeFor[policy.SecretSpec]():
		return &jsonschema.Schema{Ref: "#/$defs/Secret"}
	case reflect.TypeFor[policy.Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: durationPattern}
	case reflect.TypeFor[policy.Size]():
		return &jsonschema.Schema{Type: "string", Pattern: sizePattern}
	case reflect.TypeFor[policy.Rate]():
		return &jsonschema.Schema{Type: "string", Pattern: ratePattern}
	case reflect.TypeFor[policy.StringList]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{text(), {Type: "array", Items: text(), MinItems: new(uint64(1))}}}
	case reflect.TypeFor[policy.StringOrFalse]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{text(), {Const: false}}}
	}
	return nil
}

func text() *jsonschema.Schema { return &jsonschema.Schema{Type: "string", MinLength: new(uint64(1))} }

// only is a mapping with exactly one key.
func only(key string, value *jsonschema.Schema) *jsonschema.Schema {
	properties := jsonschema.NewProperties()
	properties.Set(key, value)
	return &jsonschema.Schema{
		Type: "object", Properties: properties, Required: []string{key}, AdditionalProperties: jsonschema.FalseSchema,
	}
}

func credential(words comments) *jsonschema.Schema {
	t := reflect.TypeFor[policy.CredentialSpec]()
	oauth2, _ := t.FieldByName("OAuth2")
	header, _ := t.FieldByName("Header")
	headers := &jsonschema.Schema{
		Type: "object", Description: words.field(t, header), MinProperties: new(uint64(1)),
		AdditionalProperties: &jsonschema.Schema{Ref: "#/$defs/Secret"},
	}
	return &jsonschema.Schema{
		Description: words.block(t),
		OneOf: []*jsonschema.Schema{
			{Const: "none"},
			only("oauth2", &jsonschema.Schema{Ref: "#/$defs/OAuth2", Description: words.field(t, oauth2)}),
			only("header", headers),
		},
	}
}

func secret(words comments) *jsonschema.Schema {
	t := reflect.TypeFor[policy.SecretSpec]()
	kinds := []*jsonschema.Schema{{Type: "string", Pattern: variablePattern}}
	for _, f := range keyed(t) {
		value := text()
		if f.Type.Kind() == reflect.Pointer {
			value = &jsonschema.Schema{Ref: "#/$defs/" + definitionName(f.Type.Elem())}
		}
		value.Description = words.field(t, f)
		kinds = append(kinds, only(f.Tag.Get("yaml"), value))
	}
	return &jsonschema.Schema{Description: words.block(t), OneOf: kinds}
}

// describe completes the schema of one block.
func describe(def *jsonschema.Schema, t reflect.Type, words comments) {
	if def.Description == "" {
		def.Description = words.block(t)
	}
	def.Required = nil
	for _, f := range keyed(t) {
		key := f.Tag.Get("yaml")
		p, ok := def.Properties.Get(key)
		if !ok {
			continue
		}
		p.Description = words.field(t, f)
		if f.Tag.Get("required") == "true" {
			def.Required = append(def.Required, key)
		}
		if value := f.Tag.Get("default"); value != "" {
			p.Default = defaultOf(f.Type, value)
		}
		for value := range strings.SplitSeq(f.Tag.Get("enum"), ",") {
			if value != "" {
				p.Enum = append(p.Enum, value)
			}
		}
		narrow(p, f.Type)
	}
	if version, ok := def.Properties.Get("version"); ok && t == reflect.TypeFor[policy.File]() {
		version.Const = 1
	}
}

// narrow says what the checks demand of every value of a type.
func narrow(p *jsonschema.Schema, t reflect.Type) {
	switch {
	case t.Kind() == reflect.String && len(p.Enum) == 0:
		p.MinLength = new(uint64(1))
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String && p.Items != nil:
		p.Items = text()
		p.UniqueItems = true
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.String:
		p.AdditionalProperties = text()
	case t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Slice:
		p.AdditionalProperties = &jsonschema.Schema{Type: "array", Items: text(), MinItems: new(uint64(1)), UniqueItems: true}
	case t.Kind() == reflect.Map:
		p.PropertyNames = &jsonschema.Schema{Pattern: namePattern}
	}
}

func defaultOf(t reflect.Type, value string) any {
	if t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Bool {
		return value == "true"
	}
	if n, err := strconv.Atoi(value); err == nil && t.Kind() == reflect.Int {
		return n
	}
	return value
}

// exactlyOne makes a block of kinds a choice between them.
func exactlyOne(def *jsonschema.Schema, kinds ...string) {
	for _, kind := range kinds {
		def.OneOf = append(def.OneOf, &jsonschema.Schema{Required: []string{kind}})
	}
	if everybody, ok := def.Properties.Get("any"); ok {
		everybody.Const, everybody.Type = true, ""
	}
}
