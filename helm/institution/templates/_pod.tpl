{{/* The pod, the same in a Job and in a Deployment. Takes (list $ ARGS restartPolicy). */}}
{{- define "institution.pod" -}}
{{- $ := index . 0 -}}
metadata:
  labels:
    {{- include "institution.labels" $ | nindent 4 }}
    {{- with $.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/site: {{ include "institution.site" $ | sha256sum }}
    {{- with $.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  restartPolicy: {{ index . 2 }}
  serviceAccountName: {{ include "institution.serviceAccount" $ }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ $.Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml $.Values.podSecurityContext | nindent 4 }}
  containers:
    - name: institution
      image: {{ include "institution.image" $ | quote }}
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      {{- if gt (int $.Values.gpu.count) 1 }}
      command: ["torchrun", "--standalone", "--nproc-per-node", "{{ $.Values.gpu.count }}", "-m", "fedddpm"]
      {{- end }}
      args: {{ index . 1 | toJson }}
      securityContext:
        {{- toYaml $.Values.securityContext | nindent 8 }}
      env:
        - {name: FEDDDPM_SITE_CONFIG, value: /etc/fedddpm/site.toml}
        - {name: HOME, value: /tmp}
        {{- with $.Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $.Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: metrics, containerPort: {{ $.Values.metrics.port }}, protocol: TCP}
      startupProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 120
      livenessProbe:
        httpGet: {path: /healthz, port: metrics}
        periodSeconds: 30
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- include "institution.resources" $ | nindent 8 }}
      volumeMounts:
        {{- include "institution.mounts" $ | nindent 8 }}
    {{- with $.Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "institution.volumes" $ | nindent 4 }}
{{- end }}

{{/* Quantities are text: a server-side apply of Kubernetes 1.20 takes no number there. */}}
{{- define "institution.resources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if .Values.gpu.count }}
{{- $resources = merge $resources (dict "limits" (dict .Values.gpu.resource (toString .Values.gpu.count))) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "institution.hasImages" -}}
{{- if or .Values.images.existingClaim .Values.images.volume .Values.images.hostPath }}yes{{ end }}
{{- end }}

{{- define "institution.mounts" -}}
- {name: site, mountPath: /etc/fedddpm/site.toml, subPath: site.toml, readOnly: true}
- {name: identity, mountPath: /etc/fedddpm/identity, readOnly: true}
- {name: state, mountPath: /state}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- if include "institution.hasImages" . }}
- name: images
  mountPath: /images
  readOnly: true
  {{- with .Values.images.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}
{{- if or .Values.caBundle.secret .Values.caBundle.configMap }}
- {name: ca, mountPath: /etc/fedddpm/ca, readOnly: true}
{{- end }}
{{- if .Values.clientCertificate.existingSecret }}
- {name: client, mountPath: /etc/fedddpm/client, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "institution.volumes" -}}
- name: site
  configMap: {name: {{ include "institution.fullname" . }}-site}
- name: identity
  secret:
    secretName: {{ .Values.identity.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ .Values.identity.key }}, path: identity.key}]
- name: state
  persistentVolumeClaim: {claimName: {{ include "institution.stateClaim" . }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shmSizeLimit }}}
{{- with .Values.images.existingClaim }}
- name: images
  persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}
{{- end }}
{{- with .Values.images.hostPath }}
- name: images
  hostPath: {path: {{ . | quote }}, type: Directory}
{{- end }}
{{- with .Values.images.volume }}
- name: images
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.caBundle }}
{{- if .secret }}
- name: ca
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items: [{key: {{ .key }}, path: ca.crt}]
{{- else if .configMap }}
- name: ca
  configMap:
    name: {{ .configMap }}
    items: [{key: {{ .key }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- with .Values.clientCertificate.existingSecret }}
- name: client
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
