{{/* Not cut: Helm takes 53 characters at most, and two releases must not have one name. */}}
{{- define "mcp.name" -}}
{{- .Release.Name -}}
{{- end }}

{{- define "mcp.selector" -}}
app.kubernetes.io/name: envoy-mcp-auth
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "mcp.labels" -}}
{{ include "mcp.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "mcp.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "mcp.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "mcp.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end }}

{{- define "mcp.configMap" -}}
{{- .Values.existingConfigMap | default (include "mcp.name" .) -}}
{{- end }}

{{/* The policy with the block server that fits the pod. */}}
{{- define "mcp.policy" -}}
{{- $server := dict "admin" "0.0.0.0:9441" -}}
{{- if eq .Values.mode "deployment" -}}
{{- $_ := set $server "listen" "0.0.0.0:9440" -}}
{{- $_ := set $server "tls" (dict "certificate" "/etc/envoy-mcp-auth/tls/tls.crt" "private_key" "/etc/envoy-mcp-auth/tls/tls.key" "client_ca" "/etc/envoy-mcp-auth/tls/ca.crt") -}}
{{- else -}}
{{- $_ := set $server "listen" "unix:///run/envoy-mcp-auth/grpc.sock" -}}
{{- end -}}
{{- if hasKey .Values.policy "server" }}{{ fail "policy.server: want it left out, since the chart writes it; put further members under server" }}{{ end -}}
{{- if not .Values.policy.upstreams }}{{ fail "policy: want a policy with upstreams, or existingConfigMap; see values.yaml" }}{{ end -}}
{{- toYaml (merge (dict "server" (merge $server .Values.server)) .Values.policy) -}}
{{- end }}
