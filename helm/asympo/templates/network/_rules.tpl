{{/*
Where pods may go. Ports are read from the addresses that the services get, here and nowhere else; a port among the values
is opened as well, for what no address tells.
*/}}

{{/* Port of a URL as text: .url, and .default where it names none. */}}
{{- define "asympo.portOf" -}}
{{- $rest := regexReplaceAll "^[^/]*://([^/?#]*).*$" .url "${1}" | regexFind ":[0-9]+$" | trimPrefix ":" }}
{{- $rest | default (toString .default) }}
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

{{- define "asympo.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
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

{{/* Where the model comes from, as a URL: the value, else what the environment of the learner says, else the hub. */}}
{{- define "asympo.hubUrl" -}}
{{- $url := .Values.model.download.endpoint }}
{{- range .Values.learner.extraEnv }}
{{- if eq .name "HF_ENDPOINT" }}{{ $url = .value | default "" }}{{ end }}
{{- end }}
{{- $url | default "https://huggingface.co" }}
{{- end }}

{{/* What only the learner talks to: the model's hub, and the trackers that are turned on. Their addresses change. */}}
{{- define "asympo.learnerPorts" -}}
{{- $ports := list }}
{{- if or .Values.model.download.repository (eq (include "asympo.isDataOfHub" .) "true") }}
{{- $ports = list "443" (include "asympo.webPortOf" (include "asympo.hubUrl" .)) }}
{{- end }}
{{- $trackers := (include "asympo.learnerSettings" . | fromJson).trackers }}
{{- if and (has "wandb" $trackers.enabled) (eq $trackers.wandb_mode "online") }}
{{- $url := "https://api.wandb.ai" }}
{{- range .Values.learner.extraEnv }}
{{- if eq .name "WANDB_BASE_URL" }}{{ $url = .value | default "" }}{{ end }}
{{- end }}
{{- $ports = append $ports (include "asympo.webPortOf" $url) }}
{{- end }}
{{- if and (has "mlflow" $trackers.enabled) (hasPrefix "http" ($trackers.mlflow_uri | default "")) }}
{{- $ports = append $ports (include "asympo.webPortOf" $trackers.mlflow_uri) }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}
