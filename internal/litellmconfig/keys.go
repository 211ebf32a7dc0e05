package litellmconfig

import "slices"

// stayingKey lists the keys of a server that are LiteLLM's own affair: its new
// configuration has them as they were.
func stayingKey(key string) bool {
	return slices.Contains([]string{
		"server_id", "alias", "description", "mcp_info", "instructions", "transport", "protocol_version",
		"access_groups", "allow_all_keys", "available_on_public_internet",
		"allowed_tools", "disallowed_tools", "allowed_params", "pinned_tools", "tool_name_to_display_name", "tool_name_to_description",
		"allow_sampling", "allow_elicitation", "timeout", "max_concurrent_requests", "rpm",
	}, key)
}

// goingKey lists the keys of how a server is reached and what it is sent. A
// server behind Envoy gets new ones, or none.
func goingKey(key string) bool {
	return slices.Contains([]string{
		"url", "spec_path", "command", "args", "env", "auth_type", "auth_value", "authentication_token",
		"static_headers", "extra_headers", "env_vars",
		"client_id", "client_secret", "oauth2_flow", "issuer", "authorization_url", "token_url", "registration_url",
		"token_endpoint_auth_method", "scopes", "audience", "upstream_resource", "upstream_token_header",
		"dcr_bridge", "per_server_oauth_discovery", "delegate_auth_to_upstream", "oauth_passthrough", "token_validation",
		"oauth_identity_binding", "token_exchange_endpoint", "token_exchange_profile", "subject_token_type",
		"id_jag_resource_token_endpoint", "id_jag_resource",
		"client_private_key", "client_private_key_id", "client_assertion_signing_alg",
		"aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_region_name", "aws_service_name", "aws_role_name", "aws_session_name",
	}, key)
}

// secretKey lists the keys of a server whose value is a secret.
func secretKey(key string) bool {
	return slices.Contains([]string{
		"auth_value", "authentication_token", "client_secret", "client_private_key",
		"aws_access_key_id", "aws_secret_access_key", "aws_session_token",
	}, key)
}
