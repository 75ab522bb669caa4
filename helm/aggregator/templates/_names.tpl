{{/* Names and labels. Names of objects end with a suffix of up to 13 characters, so 50 are left for the release. */}}

{{- define "aggregator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "aggregator.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "aggregator.labels" -}}
{{ include "aggregator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fedddpm
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aggregator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{- $tag := .Chart.AppVersion }}
{{- if include "aggregator.rayAddress" . }}{{ $tag = printf "%s-ray" $tag }}{{ end -}}
{{ .Values.image.repository }}:{{ default $tag .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "aggregator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "aggregator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "aggregator.federationConfigMap" -}}
{{- default (printf "%s-federation" (include "aggregator.fullname" .)) .Values.federation.existingConfigMap }}
{{- end }}

{{- define "aggregator.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end }}
{{- end }}

{{/* What is kept on the data volume, in words; empty: nothing, and /data may go with the pod. */}}
{{- define "aggregator.onVolume" -}}
{{- if eq .Values.database.kind "sqlite" }}the SQLite database{{ else if eq .Values.blobs.kind "volume" }}blobs{{ end }}
{{- end }}

{{/* Whether a second pod can have the data beside the first: "yes" or empty. */}}
{{- define "aggregator.dataIsShared" -}}
{{- if not (include "aggregator.onVolume" .) }}yes
{{- else if eq .Values.database.kind "sqlite" }}
{{- else if .Values.data.ephemeral }}
{{- else if eq .Values.data.accessMode "ReadWriteMany" }}yes
{{- end }}
{{- end }}

{{- define "aggregator.strategy" -}}
{{- if .Values.strategy.type }}{{ .Values.strategy.type }}
{{- else if include "aggregator.dataIsShared" . }}RollingUpdate
{{- else }}Recreate
{{- end }}
{{- end }}

{{- define "aggregator.claim" -}}
{{- default (printf "%s-data" (include "aggregator.fullname" .)) .Values.data.existingClaim }}
{{- end }}

{{- define "aggregator.postgresql" -}}
{{- include "aggregator.fullname" . }}-postgresql
{{- end }}

{{- define "aggregator.postgresqlSecret" -}}
{{- default (include "aggregator.postgresql" .) .Values.postgresql.existingSecret }}
{{- end }}

{{- define "aggregator.rayAddress" -}}
{{- if .Values.ray.cluster.enabled -}}
ray://{{ include "aggregator.fullname" . }}-ray-head-svc:10001
{{- else -}}
{{ .Values.ray.address }}
{{- end }}
{{- end }}
