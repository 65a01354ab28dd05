{{/* Most generators that capacity can lease to; a test compares it with what the learner computes. */}}
{{- define "asympo.maxGenerators" -}}
{{- $auto := .Values.generator.autoscaling }}
{{- if $auto.maxReplicas }}{{ $auto.maxReplicas }}{{ else }}
{{- $run := include "asympo.settings" (dict "root" . "service" "learner") | fromJson }}
{{- $capacity := mul (add 1 $run.max_staleness) $run.publish_every $run.groups_per_step }}
{{- $inFlight := (include "asympo.settings" (dict "root" . "service" "generator") | fromJson).max_groups_in_flight }}
{{- max $auto.minReplicas (div (sub (add $capacity $inFlight) 1) $inFlight) }}
{{- end }}
{{- end }}

{{/* Out as the rule says, in slowly: a generator that is missed takes minutes to start. */}}
{{- define "asympo.scalingBehavior" -}}
{{- $auto := .Values.generator.autoscaling -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 60}
    - {type: Pods, value: 4, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ $auto.scaleDownWindowSeconds }}
  selectPolicy: Max
  policies:
    - {type: Percent, value: {{ $auto.scaleDownPercent }}, periodSeconds: {{ $auto.scaleDownPeriodSeconds }}}
    - {type: Pods, value: 1, periodSeconds: {{ $auto.scaleDownPeriodSeconds }}}
{{- end }}
