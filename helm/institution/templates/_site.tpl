{{/* site.toml. A JSON string, number or boolean is a TOML one too. */}}

{{- define "institution.tomlTable" -}}
{{- range $name, $value := . }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}

{{- define "institution.site" -}}
{{- $top := omit .Values.site "policy" "learning" "network" "samples" -}}
identity = "/etc/fedddpm/identity/identity.key"
state_dir = "/state"
log_format = "json"
{{- include "institution.tomlTable" $top }}

[metrics]
host = "0.0.0.0"
port = {{ .Values.metrics.port }}
silence_s = {{ .Values.metrics.silenceSeconds }}
{{- with .Values.site.policy }}

[policy]
{{- include "institution.tomlTable" . }}
{{- end }}
{{- with .Values.site.learning }}

[learning]
{{- include "institution.tomlTable" . }}
{{- end }}
{{- with .Values.site.samples }}

[samples]
{{- include "institution.tomlTable" . }}
{{- end }}
{{- with include "institution.network" . }}

[network]
{{- . }}
{{- end }}
{{- end }}

{{- define "institution.network" -}}
{{- include "institution.tomlTable" .Values.site.network }}
{{- if or .Values.caBundle.secret .Values.caBundle.configMap }}
ca_bundle = "/etc/fedddpm/ca/ca.crt"
{{- end }}
{{- if .Values.clientCertificate.existingSecret }}
client_certificate = "/etc/fedddpm/client/tls.crt"
client_key = "/etc/fedddpm/client/tls.key"
{{- end }}
{{- end }}
