{{/* What cannot work is refused here, one line each: what is wrong, and what to do. Types and unknown names are refused by values.schema.json. */}}

{{- define "aggregator.refuse" -}}
{{- include "aggregator.refuseFederation" . }}
{{- include "aggregator.refuseStorage" . }}
{{- include "aggregator.refuseReplicas" . }}
{{- include "aggregator.refuseNetwork" . }}
{{- include "aggregator.refuseSecrets" . }}
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
{{- if not (regexMatch "^[0-9a-fA-F]{64}$" .rootKey) }}
{{- fail "federation.rootKey is not 64 hex digits: set it to what stands in root.pub, --set federation.rootKey=\"$(cat root.pub)\"" }}
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
{{- if and .Values.ingress.host (not (regexMatch "^([a-z0-9]([-a-z0-9]*[a-z0-9])?\\.)*[a-z0-9]([-a-z0-9]*[a-z0-9])?$" .Values.ingress.host)) }}
{{- fail (printf "ingress.host is %s, which is no host name: write it like aggregator.example.org, without https://, port and path" .Values.ingress.host) }}
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
{{- if and .Values.metrics.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) }}
{{- fail "metrics.serviceMonitor makes Prometheus ask, but the network policy lets nobody in: set networkPolicy.metricsFrom to where Prometheus runs" }}
{{- end }}
{{- if and .Values.service.nodePort (ne .Values.service.type "NodePort") }}
{{- fail "service.nodePort needs service.type=NodePort" }}
{{- end }}
{{- end }}

{{/* In a live cluster, which has this account in every namespace: each Secret is there, with its key. Takes (list $ SETTING NAME KEY). */}}
{{- define "aggregator.refuseMissingSecret" -}}
{{- $ := index . 0 }}
{{- $namespace := $.Release.Namespace }}
{{- if and (index . 2) (lookup "v1" "ServiceAccount" $namespace "default") }}
{{- $secret := lookup "v1" "Secret" $namespace (index . 2) }}
{{- if not $secret }}
{{- fail (printf "%s names the Secret %s, which is not in the namespace %s: make it first (docs/cluster.md)" (index . 1) (index . 2) $namespace) }}
{{- end }}
{{- if not (hasKey (default dict $secret.data) (index . 3)) }}
{{- fail (printf "the Secret %s has no key %s, which %s needs: it has %s" (index . 2) (index . 3) (index . 1) (keys (default dict $secret.data) | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "aggregator.refuseSecrets" -}}
{{- include "aggregator.refuseMissingSecret" (list . "serverKey.existingSecret" .Values.serverKey.existingSecret .Values.serverKey.key) }}
{{- include "aggregator.refuseMissingSecret" (list . "database.existingSecret" .Values.database.existingSecret .Values.database.key) }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
{{- include "aggregator.refuseMissingSecret" (list $ "blobs.s3.existingSecret" $.Values.blobs.s3.existingSecret .) }}
{{- end }}
{{- range list "tls.crt" "tls.key" }}
{{- include "aggregator.refuseMissingSecret" (list $ "tls.existingSecret" $.Values.tls.existingSecret .) }}
{{- end }}
{{- with .Values.tls.caKey }}
{{- include "aggregator.refuseMissingSecret" (list $ "tls.caKey" $.Values.tls.existingSecret .) }}
{{- end }}
{{- include "aggregator.refuseMissingSecret" (list . "page.existingSecret" .Values.page.existingSecret .Values.page.key) }}
{{- include "aggregator.refuseMissingSecret" (list . "postgresql.existingSecret" .Values.postgresql.existingSecret .Values.postgresql.key) }}
{{- include "aggregator.refuseAnotherPassword" . }}
{{- end }}

{{/* The database was made with the password in the Secret of this release: under another key there would be a new one, which it does not know. */}}
{{- define "aggregator.refuseAnotherPassword" -}}
{{- if and (eq .Values.database.kind "bundled") (not .Values.postgresql.existingSecret) }}
{{- $secret := lookup "v1" "Secret" .Release.Namespace (include "aggregator.postgresql" .) }}
{{- if and $secret (not (hasKey (default dict $secret.data) .Values.postgresql.key)) }}
{{- fail (printf "the Secret %s, which holds the password of the database that is there, has no key %s: set postgresql.key to the one it has (%s)" (include "aggregator.postgresql" .) .Values.postgresql.key (keys (default dict $secret.data) | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
{{- end }}
