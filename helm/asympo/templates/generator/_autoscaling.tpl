{{/* Most generators that capacity can lease to; the numbers are the defaults of the services' settings. */}}
{{- define "asympo.maxGenerators" -}}
{{- $auto := .Values.generator.autoscaling }}
{{- if $auto.maxReplicas }}{{ $auto.maxReplicas }}{{ else }}
{{- $run := .Values.learner.settings }}
{{- $capacity := mul (add 1 (dig "max_staleness" 1 $run)) (dig "publish_every" 1 $run) (dig "groups_per_step" 8 $run) }}
{{- $inFlight := dig "max_groups_in_flight" 8 .Values.generator.settings }}
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
