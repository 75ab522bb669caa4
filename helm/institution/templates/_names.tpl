{{/* Names and labels. Names of objects end with a suffix of up to 13 characters, so 50 are left for the release. */}}

{{- define "institution.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "institution.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "institution.labels" -}}
{{ include "institution.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fedddpm
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "institution.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{- $tag := printf "%s-%s" .Chart.AppVersion (ternary "cuda12" "cpu" (gt (int .Values.gpu.count) 0)) -}}
{{ .Values.image.repository }}:{{ default $tag .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "institution.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "institution.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "institution.stateClaim" -}}
{{- default (printf "%s-state" (include "institution.fullname" .)) .Values.state.existingClaim }}
{{- end }}

{{/* The port that this pod has to reach: the proxy's, or else the aggregator's. */}}
{{- define "institution.port" -}}
{{- $url := urlParse (default .Values.site.aggregator_url .Values.site.network.proxy) }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" }}
{{- if $port }}{{ $port }}{{ else if eq $url.scheme "https" }}443{{ else }}80{{ end }}
{{- end }}
