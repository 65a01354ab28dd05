{{- define "asympo.egressDns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsTo | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end }}

{{- define "asympo.egressObjectStore" -}}
{{- with .Values.checkpoints.objectStore -}}
- ports:
    - port: {{ .port }}
      protocol: TCP
  {{- with .cidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
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
{{- $external := .Values.redis.external -}}
- ports:
    - port: {{ $external.port }}
      protocol: TCP
    {{- if hasPrefix "redis+sentinel:" $external.url }}
    - port: {{ $external.sentinelPort }}
      protocol: TCP
    {{- end }}
  {{- with $external.cidrs }}
  to:
    {{- range . }}
    - ipBlock:
        cidr: {{ . }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
