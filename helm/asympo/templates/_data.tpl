{{/* Model, data and code that a person brings along, and whether every path that the settings name is mounted. */}}

{{- define "asympo.refuseData" -}}
{{- range $name, $own := .Values.data }}
{{- $given := len (compact (list $own.configMap $own.claim $own.image (ternary "yes" "" (default false $own.isInImage)))) }}
{{- if ne $given 1 }}
{{- fail (printf "data.%s names %d of configMap, claim, image and isInImage: set one of them" $name $given) }}
{{- end }}
{{- if and $own.image (semverCompare "<1.33-0" $.Capabilities.KubeVersion.Version) }}
{{- fail (printf "data.%s.image is a volume of an image, which Kubernetes offers from 1.33 on, and this cluster has %s: set configMap or claim instead" $name $.Capabilities.KubeVersion.Version) }}
{{- end }}
{{- end }}
{{- $task := (include "asympo.learnerSettings" . | fromJson).task }}
{{- $python := hasPrefix "python:" $task.scoring }}
{{- if .Values.learner.enabled }}
{{- include "asympo.refusePath" (dict "root" . "values" .Values.learner "named" "learner" "setting" "learner.settings.task.path" "path" $task.path) }}
{{- include "asympo.refusePath" (dict "root" . "values" .Values.learner "named" "learner" "setting" "model.path" "path" .Values.model.path) }}
{{- end }}
{{- range include "asympo.generators" . | fromJsonArray }}
{{- $named := ternary (printf "generator.pools.%s" .pool) "generator" (ne .pool "") }}
{{- $settings := include "asympo.settings" (dict "root" $ "service" "generator" "values" .values) | fromJson }}
{{- $where := dict "root" $ "values" .values "named" $named }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "%s.settings.task_path" $named) "path" $settings.task_path) $where) }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "%s.settings.model" $named) "path" $settings.model) $where) }}
{{- if and $.Values.learner.enabled (not $settings.task_path) }}
{{- include "asympo.refusePath" (merge (dict "setting" "learner.settings.task.path" "path" $task.path) $where) }}
{{- end }}
{{- if and $.Values.learner.enabled $python (not $settings.allow_python) }}
{{- fail (printf "learner.settings.task.scoring is %s and %s.settings.allow_python is false: the generators run that code; set %s.settings.allow_python=true" $task.scoring $named $named) }}
{{- end }}
{{- end }}
{{- end }}

{{/* .path of .setting has to lie in a volume of the pods of .named, whose values are .values; a relative one is within the image. */}}
{{- define "asympo.refusePath" -}}
{{- if and .path (hasPrefix "/" .path) }}
{{- $mounts := list "/checkpoints" }}
{{- range .root.Values.data }}{{ $mounts = append $mounts .mountPath }}{{ end }}
{{- range .values.extraVolumeMounts }}{{ $mounts = append $mounts .mountPath }}{{ end }}
{{- $found := false }}
{{- range $mounts }}
{{- if or (eq (trimSuffix "/" .) $.path) (hasPrefix (printf "%s/" (trimSuffix "/" .)) $.path) }}{{ $found = true }}{{ end }}
{{- end }}
{{- if not $found }}
{{- fail (printf "%s is %s, where the pods of %s mount nothing: they have %s; set data.NAME.mountPath and what it holds, or %s.extraVolumes and .extraVolumeMounts" .setting .path .named (join ", " $mounts) .named) }}
{{- end }}
{{- end }}
{{- end }}
