{{/* Parts of the pods that work on the federation: server and prepare, which see the same, and selftest, which sees less. */}}

{{/* A number as people write it: Helm's floats would turn 2097152 into 2.097152e+06. */}}
{{- define "aggregator.text" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "aggregator.blobsEnv" -}}
{{- if eq .Values.blobs.kind "s3" }}
- name: FEDDDPM_AGGREGATOR_BLOBS
  value: {{ .Values.blobs.s3.url | quote }}
{{- with .Values.blobs.s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end }}
{{- with .Values.blobs.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.blobs.s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- if .Values.blobs.s3.allowHttp }}
- name: AWS_ALLOW_HTTP
  value: "true"
{{- end }}
{{- end }}
{{- end }}

{{- define "aggregator.databaseEnv" -}}
{{- if eq .Values.database.kind "external" }}
- name: FEDDDPM_AGGREGATOR_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}}
{{- else if eq .Values.database.kind "bundled" }}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "aggregator.postgresqlSecret" . }}, key: {{ .Values.postgresql.key }}}}
- name: FEDDDPM_AGGREGATOR_DATABASE_URL
  value: postgresql://{{ .Values.postgresql.user }}@{{ include "aggregator.postgresql" . }}:5432/{{ .Values.postgresql.name }}
{{- end }}
{{- end }}

{{/* Takes (list $ NAME-of-the-ConfigMap): the hook's is another one. */}}
{{- define "aggregator.env" -}}
{{- $ := index . 0 }}
- name: FEDDDPM_AGGREGATOR_DATA
  value: /data
- name: FEDDDPM_AGGREGATOR_HOST
  value: 0.0.0.0
- name: FEDDDPM_AGGREGATOR_PORT
  value: "8750"
- name: FEDDDPM_AGGREGATOR_SERVER_KEY
  value: /etc/fedddpm/server/server.key
- name: FEDDDPM_AGGREGATOR_ROOT_KEY
  valueFrom: {configMapKeyRef: {name: {{ index . 1 }}, key: root.pub}}
- name: FEDDDPM_AGGREGATOR_ROSTER
  value: /etc/fedddpm/roster/roster.json
- name: FEDDDPM_AGGREGATOR_DRAIN_DELAY_S
  value: {{ $.Values.shutdown.drainDelaySeconds | quote }}
- name: FEDDDPM_AGGREGATOR_SHUTDOWN_GRACE_S
  value: {{ $.Values.shutdown.graceSeconds | quote }}
{{- include "aggregator.databaseEnv" $ }}
{{- include "aggregator.blobsEnv" $ }}
{{- if $.Values.metrics.enabled }}
- name: FEDDDPM_AGGREGATOR_METRICS_HOST
  value: 0.0.0.0
- name: FEDDDPM_AGGREGATOR_METRICS_PORT
  value: {{ $.Values.metrics.port | quote }}
{{- end }}
{{- if $.Values.tls.existingSecret }}
- name: FEDDDPM_AGGREGATOR_TLS_CERT
  value: /etc/fedddpm/tls/tls.crt
- name: FEDDDPM_AGGREGATOR_TLS_KEY
  value: /etc/fedddpm/tls/tls.key
{{- end }}
{{- if $.Values.page.existingSecret }}
- name: FEDDDPM_AGGREGATOR_PAGE_PASSWORD_FILE
  value: /etc/fedddpm/page/password
{{- end }}
{{- with include "aggregator.rayAddress" $ }}
- name: FEDDDPM_AGGREGATOR_RAY
  value: {{ . | quote }}
{{- end }}
- name: HOME
  value: /tmp
{{- range $name, $value := $.Values.settings }}
- name: FEDDDPM_AGGREGATOR_{{ $name }}
  value: {{ include "aggregator.text" $value | quote }}
{{- end }}
{{- with $.Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aggregator.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
- {name: server-key, mountPath: /etc/fedddpm/server, readOnly: true}
- {name: roster, mountPath: /etc/fedddpm/roster, readOnly: true}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /etc/fedddpm/tls, readOnly: true}
{{- end }}
{{- if .Values.page.existingSecret }}
- {name: page, mountPath: /etc/fedddpm/page, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Takes (list $ NAME-of-the-ConfigMap DATA-volume), the last one "claim" or "empty". */}}
{{- define "aggregator.volumes" -}}
{{- $ := index . 0 }}
- name: data
  {{- if eq (index . 2) "claim" }}
  persistentVolumeClaim: {claimName: {{ include "aggregator.claim" $ }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ $.Values.tmpSizeLimit }}}
- name: server-key
  secret:
    secretName: {{ $.Values.serverKey.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ $.Values.serverKey.key }}, path: server.key}]
- name: roster
  configMap:
    name: {{ index . 1 }}
    items: [{key: roster.json, path: roster.json}]
{{- with $.Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with $.Values.page.existingSecret }}
- name: page
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items: [{key: {{ $.Values.page.key }}, path: password}]
{{- end }}
{{- with $.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aggregator.dataVolume" -}}
{{- if and (include "aggregator.onVolume" .) (not .Values.data.ephemeral) }}claim{{ else }}empty{{ end }}
{{- end }}

{{/* What every pod of the chart says of itself first. Service links are off: they would set FEDDDPM_AGGREGATOR_PORT. */}}
{{- define "aggregator.podDefaults" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What every container of the aggregator's image says. Takes (list $ NAME ARGS). */}}
{{- define "aggregator.program" -}}
{{- $ := index . 0 -}}
name: {{ index . 1 }}
image: {{ include "aggregator.image" $ | quote }}
imagePullPolicy: {{ $.Values.image.pullPolicy }}
args: {{ index . 2 | toJson }}
securityContext:
  {{- toYaml $.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml $.Values.resources | nindent 2 }}
{{- with $.Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* One container that works on the federation. Takes (list $ NAME ARGS NAME-of-the-ConfigMap); env is last, so that more can follow. */}}
{{- define "aggregator.container" -}}
{{- $ := index . 0 -}}
{{ include "aggregator.program" (list $ (index . 1) (index . 2)) }}
volumeMounts:
  {{- include "aggregator.mounts" $ | nindent 2 }}
env:
  {{- include "aggregator.env" (list $ (index . 3)) | trim | nindent 2 }}
{{- end }}
