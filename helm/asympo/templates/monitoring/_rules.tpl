{{/* The rules of a file, with the release's names and what the values say about its alerts. */}}
{{- define "asympo.rules" -}}
{{- $values := .root.Values.monitoring.prometheusRule }}
{{- $groups := list }}
{{- range (fromYaml .text).groups }}
{{- $rules := list }}
{{- range .rules }}
{{- $change := get ($values.alerts | default dict) (.alert | default "") | default dict }}
{{- if ne (toString (get $change "enabled")) "false" }}
{{- $rules = append $rules (include "asympo.rule" (dict "rule" . "change" $change "root" $.root) | fromYaml) }}
{{- end }}
{{- end }}
{{- if $rules }}
{{- $name := replace "FULLNAME" (include "asympo.fullname" $.root) .name }}
{{- $groups = append $groups (set . "name" $name | merge (dict "rules" $rules)) }}
{{- end }}
{{- end }}
{{- toYaml (dict "groups" $groups) }}
{{- end }}

{{- define "asympo.rule" -}}
{{- $rule := .rule }}
{{- $expr := .rule.expr | replace "NAMESPACE" .root.Release.Namespace | replace "FULLNAME" (include "asympo.fullname" .root) }}
{{- if hasKey .change "threshold" }}
{{- $expr = regexReplaceAll "[0-9.]+ # threshold" $expr (toString .change.threshold) }}
{{- end }}
{{- $_ := set $rule "expr" (replace " # threshold" "" $expr) }}
{{- if .rule.alert }}
{{- $labels := dict }}
{{- range $key, $value := .rule.labels }}
{{- $_ := set $labels $key (eq $value "RUN" | ternary $.root.Values.run $value) }}
{{- end }}
{{- with .change.severity }}{{ $_ := set $labels "severity" . }}{{ end }}
{{- with get .change "for" }}{{ $_ := set $rule "for" . }}{{ end }}
{{- $_ := set $rule "labels" $labels }}
{{- with .rule.annotations }}
{{- $_ := set . "runbook_url" (.runbook_url | default "" | replace "docs/runbooks.md" $.root.Values.monitoring.prometheusRule.runbooks) }}
{{- end }}
{{- end }}
{{- toYaml $rule }}
{{- end }}
