{{/* What cannot work is refused here, one line each: what is wrong, and what to do. Types and unknown names are refused by values.schema.json. */}}

{{- define "institution.refuse" -}}
{{- if not .Values.site.aggregator_url }}
{{- fail "site.aggregator_url is missing: set it to the aggregator's address, https://..." }}
{{- end }}
{{- if not .Values.site.federation_root }}
{{- fail "site.federation_root is missing: set it to the root's public key, 64 hex digits, as the coordinator told you" }}
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
{{- if and .Values.caBundle.secret .Values.caBundle.configMap }}
{{- fail "caBundle.secret and caBundle.configMap exclude each other: choose one" }}
{{- end }}
{{- end }}
