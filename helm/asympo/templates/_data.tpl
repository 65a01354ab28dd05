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
{{- $code := ternary (printf "task.scoring is %s" $task.scoring) "" (hasPrefix "python:" $task.scoring) }}
{{- range $i, $reward := $task.rewards }}
{{- if contains ":" $reward.function }}{{ $code = $code | default (printf "task.rewards[%d].function is %s" $i $reward.function) }}{{ end }}
{{- end }}
{{- if .Values.learner.enabled }}
{{- range $setting := list "data" "held_out_data" }}
{{- $path := get $task $setting | default "" }}
{{- if and (not (hasPrefix "/" $path)) (regexMatch "^\\.|\\.(jsonl?|csv|parquet)$|/.*/" $path) }}
{{- fail (printf "learner.settings.task.%s is %s, which is neither a path of the pods (/data/...) nor owner/name on the hub" $setting $path) }}
{{- end }}
{{- end }}
{{- range $setting := list "path" "data" "held_out_data" }}
{{- include "asympo.refusePath" (dict "root" $ "values" $.Values.learner "named" "learner" "setting" (printf "learner.settings.task.%s" $setting) "path" (get $task $setting)) }}
{{- end }}
{{- include "asympo.refusePath" (dict "root" . "values" .Values.learner "named" "learner" "setting" "model.path" "path" .Values.model.path) }}
{{- end }}
{{- if .Values.evaluator.enabled }}{{ include "asympo.refuseEvals" . }}{{ end }}
{{- range include "asympo.generators" . | fromJsonArray }}
{{- $named := ternary (printf "generator.pools.%s" .pool) "generator" (ne .pool "") }}
{{- $settings := include "asympo.settings" (dict "root" $ "service" "generator" "values" .values) | fromJson }}
{{- $where := dict "root" $ "values" .values "named" $named }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "%s.settings.task_path" $named) "path" $settings.task_path) $where) }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "%s.settings.model" $named) "path" $settings.model) $where) }}
{{- if and $.Values.learner.enabled (not $settings.task_path) }}
{{- range $setting := list "path" "data" "held_out_data" }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "learner.settings.task.%s" $setting) "path" (get $task $setting)) $where) }}
{{- end }}
{{- end }}
{{- if $.Values.learner.enabled }}
{{- if and $code (not $settings.allow_python) }}
{{- fail (printf "learner.settings.%s and %s.settings.allow_python is false: the generators run that code; set %s.settings.allow_python=true" $code $named $named) }}
{{- end }}
{{- range $i, $reward := $task.rewards }}
{{- include "asympo.refuseRewardFile" (merge (dict "setting" (printf "learner.settings.task.rewards[%d].function" $i) "function" $reward.function) $where) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The evaluations' data and reward code, in the evaluator's pod. */}}
{{- define "asympo.refuseEvals" -}}
{{- $settings := include "asympo.settings" (dict "root" . "service" "evaluator" "values" .Values.evaluator) | fromJson }}
{{- $task := (include "asympo.learnerSettings" . | fromJson).task }}
{{- $where := dict "root" . "values" .Values.evaluator "named" "evaluator" }}
{{- include "asympo.refusePath" (merge (dict "setting" "evaluator.settings.task_path" "path" $settings.task_path) $where) }}
{{- $tasks := ternary (list (dict "setting" "learner.settings.task" "task" $task)) list (and .Values.learner.enabled (not $settings.task_path)) }}
{{- range $i, $eval := $settings.evals }}
{{- $tasks = append $tasks (dict "setting" (printf "evaluator.settings.evals[%d]" $i) "task" (merge (omit $eval "task" "name") ($eval.task | default dict))) }}
{{- end }}
{{- range $each := $tasks }}
{{- range $key := list "path" "data" "held_out_data" }}
{{- include "asympo.refusePath" (merge (dict "setting" (printf "%s.%s" $each.setting $key) "path" (get $each.task $key)) $where) }}
{{- end }}
{{- $code := hasPrefix "python:" ($each.task.scoring | default "") }}
{{- range $i, $reward := $each.task.rewards }}
{{- if contains ":" $reward.function }}{{ $code = true }}{{ end }}
{{- include "asympo.refuseRewardFile" (merge (dict "setting" (printf "%s.rewards[%d].function" $each.setting $i) "function" $reward.function) $where) }}
{{- end }}
{{- if and $code (not $settings.allow_python) }}
{{- fail (printf "%s scores with code and evaluator.settings.allow_python is false: the evaluator runs that code; set evaluator.settings.allow_python=true" $each.setting) }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" where the task's rows come from a hub: then the services are not offline, and reach it. */}}
{{- define "asympo.isDataOfHub" -}}
{{- $task := (include "asympo.learnerSettings" . | fromJson).task }}
{{- $found := false }}
{{- $paths := list $task.data $task.held_out_data }}
{{- if .Values.evaluator.enabled }}
{{- range (.Values.evaluator.settings | default dict).evals }}
{{- range list . (.task | default dict) }}{{ $paths = concat $paths (list .data .held_out_data) }}{{ end }}
{{- end }}
{{- end }}
{{- range $path := $paths }}
{{- if and $path (not (hasPrefix "/" $path)) }}{{ $found = true }}{{ end }}
{{- end }}
{{- $found }}
{{- end }}

{{/* The file of .function, if it is one, where the pods of .named have it. */}}
{{- define "asympo.refuseRewardFile" -}}
{{- $file := regexReplaceAll ":[^:]*$" .function "" }}
{{- if hasSuffix ".py" $file }}
{{- if not (hasPrefix "/" $file) }}
{{- fail (printf "%s is %s, which is relative to a folder that the pods do not have: give its path there, such as %s/%s" .setting .function (include "asympo.codeFolder" .root) (base $file)) }}
{{- end }}
{{- include "asympo.refusePath" (merge (dict "path" $file) .) }}
{{- end }}
{{- end }}

{{/* Where code lies, or would. */}}
{{- define "asympo.codeFolder" -}}
{{- $found := "" }}
{{- range .Values.data }}{{ if .isCode }}{{ $found = $found | default .mountPath }}{{ end }}{{ end }}
{{- $found | default "/data/reward" }}
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
