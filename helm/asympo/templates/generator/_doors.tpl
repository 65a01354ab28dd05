{{/* Ports on which generators of this release have doors, as JSON. */}}
{{- define "asympo.doorPorts" -}}
{{- $ports := list }}
{{- range include "asympo.generators" . | fromJsonArray }}
{{- with (.values.settings.door | default dict).port }}{{ $ports = append $ports (toJson .) }}{{ end }}
{{- end }}
{{- $ports | uniq | toJson }}
{{- end }}

{{/* Doors that the gateway's sessions ask, as JSON: those given, else those of this release's generators. */}}
{{- define "asympo.doors" -}}
{{- $given := (.Values.gateway.settings | default dict).doors | default list }}
{{- if not $given }}
{{- $name := include "asympo.name" (dict "root" . "component" "generator") }}
{{- range include "asympo.doorPorts" . | fromJsonArray }}
{{- $given = append $given (printf "http://%s-doors:%s/v1" $name .) }}
{{- end }}
{{- end }}
{{- $given | toJson }}
{{- end }}
