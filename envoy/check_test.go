package envoy_test

import (
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
)

func TestCheckFindsNothingInRendered(t *testing.T) {
	for name, s := range rendered() {
		b := render(t, s, envoy.Options{Admin: "127.0.0.1:9901"})
		for _, with := range []string{"policy", "none"} {
			use := s
			if with == "none" {
				use = nil
			}
			found, err := envoy.Check(name, b, use)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				t.Errorf("%s, %s: %s", name, with, f)
			}
		}
	}
}
