package parts

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Render returns the files that go with a policy, by name: the policy itself,
// Envoy's configuration and LiteLLM's.
func Render(text []byte, set *policy.Set) (map[string][]byte, error) {
	forEnvoy, err := envoy.Render(set, envoy.Options{})
	if err != nil {
		return nil, err
	}
	servers, err := envoy.RenderLiteLLM(set)
	if err != nil {
		return nil, err
	}
	// Without model_list: LiteLLM's MCP gateway needs none.
	forLiteLLM := append(servers, []byte("general_settings:\n  master_key: os.environ/"+MasterKey+"\n")...)
	return map[string][]byte{PolicyFile: text, EnvoyFile: forEnvoy, LiteLLMFile: forLiteLLM}, nil
}

// Shift moves every port of a policy text up by offset, and its socket to a
// directory of its own, so that two demos can run on one machine. Without an
// offset, the text stays as it is.
func Shift(text []byte, offset int) ([]byte, error) {
	if offset == 0 {
		return text, nil
	}
	var bad error
	port := regexp.MustCompile(`(127\.0\.0\.1:)(\d+)`)
	shifted := port.ReplaceAllFunc(text, func(m []byte) []byte {
		parts := port.FindSubmatch(m)
		n, err := strconv.Atoi(string(parts[2]))
		if n += offset; err != nil || n < 1 || n > 65535 {
			bad = fmt.Errorf("port %s moved by %d: want 1 to 65535; take a smaller offset", parts[2], offset)
		}
		return strconv.AppendInt(parts[1], int64(n), 10)
	})
	socket := regexp.MustCompile(`(?m)^(\s+listen: unix://.*)(/[^/]+)$`)
	return socket.ReplaceAll(shifted, fmt.Appendf(nil, "${1}-%d${2}", offset)), bad
}
