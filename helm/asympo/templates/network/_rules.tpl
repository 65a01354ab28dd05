{{/*
Where pods may go. Ports are read from the addresses that the services get, here and nowhere else; a port among the values
is opened as well, for what no address tells.
*/}}

{{/* Port of a URL as text: .url, and .default where it names none. */}}
{{- define "asympo.portOf" -}}
{{- $rest := regexReplaceAll "^[^/]*://([^/?#]*).*$" .url "${1}" | regexFind ":[0-9]+$" | trimPrefix ":" }}
{{- $port := $rest | default (toString .default) }}
{{- if or (gt (len $port) 5) (lt (int $port) 1) (gt (int $port) 65535) }}
{{- fail (printf "%s has the port %s: ports are 1 to 65535" .url $port) }}
{{- end }}
{{- $port }}
{{- end }}

{{/* Port of an http or https URL. */}}
{{- define "asympo.webPortOf" -}}
{{- include "asympo.portOf" (dict "url" . "default" (ternary 443 80 (hasPrefix "https:" .))) }}
{{- end }}

{{/* Ports of the broker as JSON: of every host of its URL, and of the servers that its Sentinels name. */}}
{{- define "asympo.brokerPorts" -}}
{{- $external := .Values.redis.external }}
{{- $isSentinel := contains "+sentinel://" $external.url }}
{{- $ports := list }}
{{- range splitList "," (regexReplaceAll "^[^/]*://([^/?#]*).*$" $external.url "${1}") }}
{{- if . }}
{{- $ports = append $ports (include "asympo.portOf" (dict "url" (printf "redis://%s" .) "default" (ternary 26379 6379 $isSentinel))) }}
{{- end }}
{{- end }}
{{- if $external.port }}
{{- $ports = append $ports (toJson $external.port) }}
{{- else if $isSentinel }}
{{- $ports = append $ports "6379" }}
{{- end }}
{{- with $external.sentinelPort }}{{ $ports = append $ports (toJson .) }}{{ end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* One egress rule: .ports as text, .cidrs or .to; to any address without them. */}}
{{- define "asympo.egressTo" -}}
- ports:
    {{- range .ports | uniq }}
    - port: {{ . | int }}
      protocol: TCP
    {{- end }}
  {{- if or .cidrs .to }}
  to:
    {{- with .to }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- range .cidrs }}
    - ipBlock:
        cidr: {{ . | toJson }}
    {{- end }}
  {{- end }}
{{- end }}

{{/* Policies see the port of the pods: OpenShift's listen on 5353. */}}
{{- define "asympo.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
  ports:
    {{- range $port := list 53 5353 }}
    {{- range list "UDP" "TCP" }}
    - port: {{ $port | int }}
      protocol: {{ . | toJson }}
    {{- end }}
    {{- end }}
{{- end }}

{{/* The store; and, where pods have an identity of their own, who gives them its keys: AWS's STS and EKS' agent on each node. */}}
{{- define "asympo.egressObjectStore" -}}
{{- $store := .Values.checkpoints.objectStore }}
{{- $ports := list (include "asympo.webPortOf" ($store.endpoint | default "https://")) }}
{{- with $store.port }}{{ $ports = append $ports (toJson .) }}{{ end }}
{{- include "asympo.egressTo" (dict "ports" $ports "cidrs" $store.cidrs) }}
{{- if not $store.credentials.secret }}
{{ include "asympo.egressTo" (dict "ports" (list "443")) }}
{{ include "asympo.egressTo" (dict "ports" (list "80") "cidrs" (list "169.254.170.23/32" "fd00:ec2::23/128")) }}
{{- end }}
{{- end }}

{{- define "asympo.egressBroker" -}}
{{- if eq .Values.redis.mode "embedded" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "asympo.selector" (dict "root" . "component" "redis") | nindent 10 }}
  ports:
    - port: redis
      protocol: TCP
{{- else }}
{{- include "asympo.egressTo" (dict "ports" (include "asympo.brokerPorts" . | fromJsonArray) "cidrs" .Values.redis.external.cidrs) }}
{{- end }}
{{- end }}

{{/* Variables of an environment whose values are addresses that somebody connects to. */}}
{{- define "asympo.addressVariables" -}}
{{- $names := list "HF_ENDPOINT" "WANDB_BASE_URL" "MLFLOW_TRACKING_URI" "OTEL_EXPORTER_OTLP_ENDPOINT" "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" "AWS_ENDPOINT_URL" "AWS_ENDPOINT_URL_S3" }}
{{- range list "HTTP_PROXY" "HTTPS_PROXY" "ALL_PROXY" }}{{ $names = append (append $names .) (lower .) }}{{ end }}
{{- $names | toJson }}
{{- end }}

{{/*
Ports of .component beyond what every service reaches, as JSON: the hub, trackers, servers that sample or score, doors, and
what addresses its environment names. .root
*/}}
{{- define "asympo.outsidePorts" -}}
{{- $root := .root }}
{{- $component := .component }}
{{- $all := list (index $root.Values $component) }}
{{- if eq $component "generator" }}
{{- $all = list }}
{{- range include "asympo.generators" $root | fromJsonArray }}{{ $all = append $all .values }}{{ end }}
{{- end }}
{{- $task := (include "asympo.learnerSettings" $root | fromJson).task }}
{{- $trackers := (include "asympo.learnerSettings" $root | fromJson).trackers }}
{{- $urls := list }}
{{- range $own := $all }}
{{- $named := dict }}
{{- range $own.extraEnv }}{{ if .value }}{{ $_ := set $named .name .value }}{{ end }}{{ end }}
{{- if or (eq (include "asympo.isDataOfHub" $root) "true") (and (eq $component "learner") $root.Values.model.download.repository) }}
{{- $urls = concat $urls (list "https://" ($named.HF_ENDPOINT | default $root.Values.model.download.endpoint | default "https://")) }}
{{- end }}
{{- if eq $component "learner" }}
{{- if and (has "wandb" $trackers.enabled) (eq $trackers.wandb_mode "online") }}
{{- $urls = append $urls ($named.WANDB_BASE_URL | default "https://api.wandb.ai") }}
{{- end }}
{{- if and (has "mlflow" $trackers.enabled) (hasPrefix "http" ($trackers.mlflow_uri | default "")) }}
{{- $urls = append $urls $trackers.mlflow_uri }}
{{- end }}
{{- end }}
{{- $settings := $own.settings | default dict }}
{{- if and (eq $component "generator") (eq (toString $settings.engine) "openai") }}
{{- with ($settings.openai | default dict).base_url }}{{ $urls = append $urls . }}{{ end }}
{{- end }}
{{- range include "asympo.addressVariables" $root | fromJsonArray }}{{ with get $named . }}{{ $urls = append $urls . }}{{ end }}{{ end }}
{{- end }}
{{- /* The learner's pod runs the environment once, to write its rows down. */}}
{{- if and (eq $component "learner") (include "asympo.environmentRows" $root) }}
{{- $addresses := include "asympo.addressVariables" $root | fromJsonArray }}
{{- range $root.Values.environment.extraEnv }}
{{- if and .value (has .name $addresses) }}{{ $urls = append $urls .value }}{{ end }}
{{- end }}
{{- end }}
{{- if eq $component "gateway" }}{{ $urls = concat $urls (include "asympo.doors" $root | fromJsonArray) }}{{ end }}
{{- $rewards := list }}
{{- if has $component (list "generator" "evaluator") }}{{ $rewards = $task.rewards | default list }}{{ end }}
{{- if eq $component "evaluator" }}
{{- range ($root.Values.evaluator.settings | default dict).evals }}
{{- $rewards = concat $rewards (.rewards | default list) ((.task | default dict).rewards | default list) }}
{{- end }}
{{- end }}
{{- range $rewards }}{{ with (.options | default dict).url }}{{ $urls = append $urls . }}{{ end }}{{ end }}
{{- $ports := list }}
{{- range $urls }}{{ $ports = append $ports (include "asympo.webPortOf" .) }}{{ end }}
{{- $ports | uniq | toJson }}
{{- end }}
