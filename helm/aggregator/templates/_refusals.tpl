{{/* What cannot work is refused here, one line each: what is wrong, and what to do. Types and unknown names are refused by values.schema.json. */}}

{{- define "aggregator.refuse" -}}
{{- include "aggregator.refuseFederation" . }}
{{- include "aggregator.refuseStorage" . }}
{{- include "aggregator.refuseReplicas" . }}
{{- include "aggregator.refuseNetwork" . }}
{{- end }}

{{- define "aggregator.refuseFederation" -}}
{{- with .Values.federation }}
{{- if and .existingConfigMap (or .rootKey .roster) }}
{{- fail "federation.existingConfigMap stands instead of federation.rootKey and federation.roster: set it or them, not both" }}
{{- end }}
{{- if not .existingConfigMap }}
{{- if not .rootKey }}
{{- fail "federation.rootKey is missing: set it to the root's public key, the 64 hex digits in root.pub" }}
{{- end }}
{{- if not .roster }}
{{- fail "federation.roster is missing: add --set-file federation.roster=roster.json, the file that the root signed" }}
{{- end }}
{{- if contains "ed25519_seed" .roster }}
{{- fail "federation.roster holds a private key: give the signed roster (roster.json); the root's private key never enters a cluster" }}
{{- end }}
{{- $document := fromJson .roster }}
{{- if or (hasKey $document "Error") (not (hasKey $document "body")) (not (hasKey $document "signature")) }}
{{- fail "federation.roster is no signed roster: give the file that `fedddpm-aggregator federation roster create` wrote" }}
{{- end }}
{{- if gt (len .roster) 900000 }}
{{- fail "federation.roster is larger than a ConfigMap can hold: install a smaller one, then this one with `fedddpm-aggregator operator install-roster`" }}
{{- end }}
{{- end }}
{{- end }}
{{- if not .Values.serverKey.existingSecret }}
{{- fail "serverKey.existingSecret is missing: make a Secret of server.key (`kubectl create secret generic NAME --from-file=server.key`) and name it here" }}
{{- end }}
{{- end }}

{{- define "aggregator.refuseStorage" -}}
{{- if and (eq .Values.database.kind "external") (not .Values.database.existingSecret) }}
{{- fail "database.existingSecret is missing: name the Secret with the URL of the external database" }}
{{- end }}
{{- if and (ne .Values.database.kind "external") .Values.database.existingSecret }}
{{- fail (printf "database.existingSecret names an external database, but database.kind is %s: set database.kind=external, or leave the Secret out" .Values.database.kind) }}
{{- end }}
{{- if and (eq .Values.blobs.kind "s3") (not .Values.blobs.s3.url) }}
{{- fail "blobs.s3.url is missing: set it to s3://bucket/prefix" }}
{{- end }}
{{- if and (eq .Values.blobs.kind "volume") .Values.blobs.s3.url }}
{{- fail "blobs.s3.url is set, but blobs.kind is volume: set blobs.kind=s3, or leave the URL out" }}
{{- end }}
{{- if and .Values.data.existingClaim .Values.data.ephemeral }}
{{- fail "data.existingClaim and data.ephemeral exclude each other: choose one" }}
{{- end }}
{{- if and .Values.ray.cluster.enabled (ne .Values.blobs.kind "s3") }}
{{- fail "ray.cluster needs blobs that its workers can read: set blobs.kind=s3" }}
{{- end }}
{{- if and .Values.ray.cluster.enabled .Values.ray.address }}
{{- fail "ray.cluster.enabled and ray.address exclude each other: choose one" }}
{{- end }}
{{- if and .Values.ray.cluster.enabled (not .Values.ray.cluster.rayVersion) }}
{{- fail "ray.cluster.rayVersion is missing: set it to the version of Ray in the image" }}
{{- end }}
{{- end }}

{{- define "aggregator.refuseReplicas" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) }}
{{- $what := include "aggregator.onVolume" . }}
{{- if and $several (eq .Values.database.kind "sqlite") }}
{{- fail "SQLite has one server: set replicas=1 and autoscaling.enabled=false, or database.kind=external" }}
{{- end }}
{{- if and $several (not (include "aggregator.dataIsShared" .)) }}
{{- fail (printf "several servers cannot share %s on this volume: set blobs.kind=s3, or data.accessMode=ReadWriteMany" $what) }}
{{- end }}
{{- if and (eq .Values.strategy.type "RollingUpdate") (not (include "aggregator.dataIsShared" .)) }}
{{- fail (printf "strategy.type=RollingUpdate needs two servers at a time, and %s on this volume has one: leave strategy.type empty" $what) }}
{{- end }}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (not (dig "requests" "cpu" "" .Values.resources)) }}
{{- fail "autoscaling needs resources.requests.cpu, which its target is a share of" }}
{{- end }}
{{- end }}

{{- define "aggregator.refuseNetwork" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) }}
{{- fail "ingress.host is missing: set it to the host name that institutions use" }}
{{- end }}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) }}
{{- fail "gateway.parentRefs is missing: name the Gateway that the route is attached to" }}
{{- end }}
{{- if and .Values.gateway.enabled .Values.tls.existingSecret (not .Values.gateway.backendTLS.hostname) }}
{{- fail "gateway.backendTLS.hostname is missing: with tls.existingSecret the gateway must know the name in the server's certificate" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) }}
{{- fail "metrics.serviceMonitor needs metrics.enabled=true" }}
{{- end }}
{{- if and .Values.service.nodePort (ne .Values.service.type "NodePort") }}
{{- fail "service.nodePort needs service.type=NodePort" }}
{{- end }}
{{- end }}
