{{/* How many generators a pool has, and may have. All take .root .pool .values. */}}

{{/* Most generators that capacity can lease to; a test compares it with what the learner computes. */}}
{{- define "asympo.maxGenerators" -}}
{{- $auto := .values.autoscaling }}
{{- if $auto.maxReplicas }}{{ $auto.maxReplicas | int }}{{ else }}
{{- $run := include "asympo.settings" (dict "root" .root "service" "learner" "values" .root.Values.learner) | fromJson }}
{{- $capacity := mul (add 1 $run.max_staleness) $run.publish_every $run.groups_per_step }}
{{- $inFlight := (include "asympo.settings" (dict "root" .root "service" "generator" "values" .values) | fromJson).max_groups_in_flight }}
{{- max $auto.minReplicas (div (sub (add $capacity $inFlight) 1) $inFlight) }}
{{- end }}
{{- end }}

{{/*
`spec.replicas`. Under an autoscaler it is the number that the cluster has, since a Deployment from which the field is
taken away falls to one for a moment; and nothing where that cannot be known.
*/}}
{{- define "asympo.generatorReplicas" -}}
{{- if eq .values.autoscaling.kind "none" }}
{{- .values.replicas | int }}
{{- else }}
{{- $there := include "asympo.present" (dict "root" .root "apiVersion" "apps/v1" "kind" "Deployment" "name" (include "asympo.name" .)) | fromJson }}
{{- with $there.spec }}{{ if hasKey . "replicas" }}{{ max (int .replicas) 1 }}{{ end }}{{ end }}
{{- end }}
{{- end }}

{{/* Out as the rule says, in slowly: a generator that is missed takes minutes to start. */}}
{{- define "asympo.scalingBehavior" -}}
{{- $auto := .values.autoscaling -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 4, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ $auto.scaleDownWindowSeconds | toJson }}
  selectPolicy: Max
  policies:
    - {type: Percent, value: {{ $auto.scaleDownPercent | toJson }}, periodSeconds: {{ $auto.scaleDownPeriodSeconds | toJson }}}
    - {type: Pods, value: 1, periodSeconds: {{ $auto.scaleDownPeriodSeconds | toJson }}}
{{- end }}

{{/* How many generators `helm test` waits for: one, unless none was asked for. */}}
{{- define "asympo.minGenerators" -}}
{{- $min := 0 }}
{{- range include "asympo.generators" . | fromJsonArray }}
{{- if or (ne .values.autoscaling.kind "none") (gt (int .values.replicas) 0) }}{{ $min = 1 }}{{ end }}
{{- end }}
{{- $min }}
{{- end }}
