{{/* TOML of a settings map: plain keys first, then one table for each map. */}}
{{- define "asympo.toml" -}}
{{- $path := .path }}
{{- range $key, $value := .values }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ include "asympo.tomlKey" $key }} = {{ include "asympo.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .values }}
{{- if kindIs "map" $value }}
{{- $name := ternary (include "asympo.tomlKey" $key) (printf "%s.%s" $path (include "asympo.tomlKey" $key)) (empty $path) }}

[{{ $name }}]
{{- include "asympo.toml" (dict "values" $value "path" $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ include "asympo.tomlValue" . }}{{ end }}
{{- end }}

{{/* On one line: a map within a list is an inline table, and a JSON scalar is TOML. */}}
{{- define "asympo.tomlValue" -}}
{{- $parts := list }}
{{- if kindIs "slice" . }}
{{- range . }}{{ $parts = append $parts (include "asympo.tomlValue" .) }}{{ end }}
{{- printf "[%s]" (join "," $parts) }}
{{- else if kindIs "map" . }}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{- $parts = append $parts (printf "%s = %s" (include "asympo.tomlKey" $key) (include "asympo.tomlValue" $value)) }}
{{- end }}
{{- end }}
{{- printf "{%s}" (join ", " $parts) }}
{{- else }}
{{- toJson . | replace "\u007f" "\\u007f" }}
{{- end }}
{{- end }}

{{/* What the chart itself decides of every service's settings. */}}
{{- define "asympo.commonSettings" -}}
run: {{ .Values.run | toJson }}
{{- $url := include "asympo.brokerUrl" . }}
{{- if $url }}
redis_url: {{ $url | toJson }}
{{- end }}
checkpoint_root: /checkpoints
{{- with .Values.checkpoints.objectStore }}
{{- if .url }}
object_store:
  url: {{ trimSuffix "/" .url | toJson }}
  {{- with .endpoint }}
  endpoint: {{ trimSuffix "/" . | toJson }}
  {{- end }}
  {{- with .region }}
  region: {{ . | toJson }}
  {{- end }}
  {{- if .caFrom.secret }}
  ca_file: /etc/asympo/object-store-ca/ca.crt
  {{- end }}
  cached_policies: {{ .cachedPolicies | toJson }}
{{- end }}
{{- end }}
deltas:
  keyframe_every: {{ .Values.checkpoints.keyframeEvery | toJson }}
  {{- if not .Values.checkpoints.objectStore.url }}
  cache: /copies
  {{- end }}
log_level: {{ .Values.logLevel | toJson }}
log_format: json
http_host: 0.0.0.0
{{- end }}

{{- define "asympo.tracingSettings" -}}
{{- with .Values.tracing }}
{{- if .endpoint -}}
tracing:
  endpoint: {{ trimSuffix "/" .endpoint | toJson }}
  share: {{ .share | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where a control service listens and its certificates. .root .port */}}
{{- define "asympo.controlSettings" -}}
{{- if .root.Values.control.tls.secret -}}
grpc_host: 0.0.0.0
grpc_port: {{ .port | toJson }}
grpc_tls:
  certificate: /etc/asympo/control-tls/tls.crt
  key: /etc/asympo/control-tls/tls.key
  client_ca: /etc/asympo/control-tls/ca.crt
{{- end }}
{{- end }}

{{/* Broker's URL without credentials; empty where a Secret holds the whole of it. */}}
{{- define "asympo.brokerUrl" -}}
{{- if eq .Values.redis.mode "embedded" }}
{{- printf "redis://%s-redis:6379/0" (include "asympo.fullname" .) }}
{{- else if .Values.redis.external.url }}
{{- $external := .Values.redis.external }}
{{- $options := list }}
{{- if $external.caFrom.secret }}
{{- $options = append $options "ssl_ca_certs=/etc/asympo/broker-ca/ca.crt" }}
{{- end }}
{{- if $external.clientCertificate.secret }}
{{- $options = concat $options (list "ssl_certfile=/etc/asympo/broker-client/tls.crt" "ssl_keyfile=/etc/asympo/broker-client/tls.key") }}
{{- end }}
{{- if $external.sentinel.caFrom.secret }}
{{- $options = append $options "sentinel_ssl_ca_certs=/etc/asympo/sentinel-ca/ca.crt" }}
{{- end }}
{{- if not (kindIs "invalid" $external.sentinel.tls) }}
{{- $options = append $options (printf "sentinel_tls=%s" (ternary "yes" "no" $external.sentinel.tls)) }}
{{- end }}
{{- $url := $external.url }}
{{- if $options }}
{{- $url = printf "%s%s%s" $url (ternary "&" "?" (contains "?" $url)) (join "&" $options) }}
{{- end }}
{{- $url }}
{{- end }}
{{- end }}

{{- define "asympo.modelPath" -}}
{{- with .Values.model.download.repository }}
{{- printf "/checkpoints/models/%s/%s" . $.Values.model.download.revision }}
{{- else }}
{{- .Values.model.path }}
{{- end }}
{{- end }}

{{/* The settings that a service has in the end: those of .values over the defaults of its code. .root .service */}}
{{- define "asympo.settings" -}}
{{- $defaults := index (.root.Files.Get "files/default-settings.json" | fromJson) .service }}
{{- mergeOverwrite $defaults (deepCopy (.values.settings | default dict)) | toJson }}
{{- end }}

{{- define "asympo.learnerSettings" -}}
{{- include "asympo.settings" (dict "root" . "service" "learner" "values" .Values.learner) }}
{{- end }}

{{- define "asympo.learnerToml" -}}
{{- $own := include "asympo.commonSettings" . | fromYaml }}
{{- $_ := set $own "http_port" 8080 }}
{{- $own = merge $own (include "asympo.controlSettings" (dict "root" . "port" 50051) | fromYaml) (include "asympo.tracingSettings" . | fromYaml) }}
{{- $_ := set $own "allowed_hosts" (include "asympo.pageHosts" . | fromJsonArray) }}
{{- with include "asympo.modelPath" . }}{{ $_ := set $own "model" . }}{{ end }}
{{- with include "asympo.environmentRows" . }}{{ $_ := set $own "task" (dict "path" .) }}{{ end }}
{{- /* A node without a working driver is an error then, not a reason to train on its CPU. */}}
{{- if and (gt (int .Values.learner.gpus) 0) (not (hasKey .Values.learner.settings "device")) }}
{{- $_ := set $own "device" "cuda" }}
{{- end }}
{{- include "asympo.toml" (dict "values" (mergeOverwrite (deepCopy .Values.learner.settings) $own) "path" "") | trim }}
{{- end }}

{{/* Names under which the learner's page may be asked for: those of its Service, and those it has outside. */}}
{{- define "asympo.pageHosts" -}}
{{- $name := printf "%s-learner" (include "asympo.fullname" .) }}
{{- $page := .Values.learner.page }}
{{- $hosts := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) }}
{{- concat $hosts ($page.allowedHosts | default list) (compact (list $page.ingress.host)) ($page.httpRoute.hostnames | default list) | uniq | toJson }}
{{- end }}

{{- define "asympo.gatewayToml" -}}
{{- $own := include "asympo.commonSettings" . | fromYaml }}
{{- $_ := set $own "http_port" 8090 }}
{{- $own = merge $own (include "asympo.controlSettings" (dict "root" . "port" 50053) | fromYaml) }}
{{- $_ := set $own "producers" "/etc/asympo/producers/producers.toml" }}
{{- with include "asympo.doors" . | fromJsonArray }}
{{- $_ := set $own "doors" . }}
{{- end }}
{{- if .Values.gateway.doorsTokenFrom.secret }}
{{- $_ := set $own "doors_token" "/etc/asympo/doors-token/token" }}
{{- end }}
{{- include "asympo.toml" (dict "values" (mergeOverwrite (deepCopy (.Values.gateway.settings | default dict)) $own) "path" "") | trim }}
{{- end }}

{{/* .root .values */}}
{{- define "asympo.evaluatorToml" -}}
{{- $own := include "asympo.commonSettings" .root | fromYaml }}
{{- $_ := set $own "http_port" 8083 }}
{{- $played := dict }}
{{- if .root.Values.environment.enabled }}
{{- $_ := set $played "environment" .root.Values.learner.settings.task.environment }}
{{- with .root.Values.environment.python }}{{ $_ := set $played "environment_python" . }}{{ end }}
{{- with (.root.Values.generator.settings.door | default dict).tool_call_parser }}{{ $_ := set $played "tool_call_parser" . }}{{ end }}
{{- end }}
{{- include "asympo.toml" (dict "values" (mergeOverwrite $played (deepCopy (.values.settings | default dict)) $own) "path" "") | trim }}
{{- end }}

{{/* .root .values */}}
{{- define "asympo.generatorToml" -}}
{{- $own := include "asympo.commonSettings" .root | fromYaml }}
{{- $_ := set $own "http_port" 8081 }}
{{- $own = merge $own (include "asympo.controlSettings" (dict "root" .root "port" 50052) | fromYaml) (include "asympo.tracingSettings" .root | fromYaml) }}
{{- include "asympo.toml" (dict "values" (mergeOverwrite (deepCopy (.values.settings | default dict)) $own) "path" "") | trim }}
{{- end }}
