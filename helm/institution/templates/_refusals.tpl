{{/* What cannot work is refused here, one line each: what is wrong, and what to do. Types and unknown names are refused by values.schema.json. */}}

{{- define "institution.refuse" -}}
{{- if not .Values.site.aggregator_url }}
{{- fail "site.aggregator_url is missing: set it to the aggregator's address, https://..." }}
{{- end }}
{{- if not (regexMatch "^https?://[^/?#@\\s]+(/[^?#\\s]*)?$" .Values.site.aggregator_url) }}
{{- fail "site.aggregator_url is no address of an aggregator: write it like https://aggregator.example.org, without user, password, ? and #" }}
{{- end }}
{{- if not .Values.site.federation_root }}
{{- fail "site.federation_root is missing: set it to the root's public key, 64 hex digits, as the coordinator told you" }}
{{- end }}
{{- if not (regexMatch "^[0-9a-fA-F]{64}$" .Values.site.federation_root) }}
{{- fail "site.federation_root is not 64 hex digits: set it to what stands in the coordinator's root.pub, and compare it by telephone" }}
{{- end }}
{{- $proxy := dig "proxy" "" (default dict .Values.site.network) }}
{{- if and $proxy (not (regexMatch "^https?://[^@/\\s]+/?$" $proxy)) }}
{{- fail "site.network.proxy is no address of a proxy: write it like http://proxy.example.org:3128, without a password, which the ConfigMap would show" }}
{{- end }}
{{- $policy := default dict .Values.site.policy }}
{{- if and (eq (int (dig "min_cohort" 0 $policy)) 2) (not (dig "allow_two_party" false $policy)) }}
{{- fail "site.policy.min_cohort is 2: two institutions know each other's update from the sum; set it to 3 or more, or site.policy.allow_two_party=true" }}
{{- end }}
{{- if not .Values.identity.existingSecret }}
{{- fail "identity.existingSecret is missing: make a Secret of the key file (`kubectl create secret generic NAME --from-file=identity.key=FILE`) and name it here" }}
{{- end }}
{{- $sources := list }}
{{- range $name := list "existingClaim" "volume" "hostPath" }}
{{- if index $.Values.images $name }}{{ $sources = append $sources (printf "images.%s" $name) }}{{ end }}
{{- end }}
{{- if gt (len $sources) 1 }}
{{- fail (printf "%s exclude each other: choose one" (join " and " $sources)) }}
{{- end }}
{{- if and (not $sources) (hasPrefix "/images" .Values.site.data) }}
{{- fail "there is no volume with images: set images.existingClaim, images.volume or images.hostPath, or site.data to another place" }}
{{- end }}
{{- if and $sources (contains "/" .Values.site.data) (not (hasPrefix "/" .Values.site.data)) }}
{{- fail (printf "site.data is %s, a path without a beginning: the volume with images is mounted at /images, so write /images/..." .Values.site.data) }}
{{- end }}
{{- if and .Values.metrics.podMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.metricsFrom) }}
{{- fail "metrics.podMonitor makes Prometheus ask, but the network policy lets nobody in: set networkPolicy.metricsFrom to where Prometheus runs" }}
{{- end }}
{{- if and .Values.caBundle.secret .Values.caBundle.configMap }}
{{- fail "caBundle.secret and caBundle.configMap exclude each other: choose one" }}
{{- end }}
{{- include "institution.refuseMissingSecret" (list . "identity.existingSecret" .Values.identity.existingSecret .Values.identity.key) }}
{{- include "institution.refuseMissingSecret" (list . "caBundle.secret" .Values.caBundle.secret .Values.caBundle.key) }}
{{- range list "tls.crt" "tls.key" }}
{{- include "institution.refuseMissingSecret" (list $ "clientCertificate.existingSecret" $.Values.clientCertificate.existingSecret .) }}
{{- end }}
{{- end }}

{{/* In a live cluster, which has this account in every namespace: each Secret is there, with its key. Takes (list $ SETTING NAME KEY). */}}
{{- define "institution.refuseMissingSecret" -}}
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
