package policy

import (
	_ "embed"
	"slices"
)

//go:generate go run ../internal/schemagen -root ..

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema (draft 2020-12) of the policy file, for
// editors. It is looser than Parse: what depends on two keys, on the environment
// or on a name elsewhere, only Parse checks.
func Schema() []byte { return slices.Clone(schema) }
