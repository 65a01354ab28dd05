{{/* What plays the run's environment, and whether it can. */}}

{{/* Where the learner's pod writes the rows of the environment; empty where the settings name a file of them. */}}
{{- define "asympo.environmentRows" -}}
{{- $task := (.Values.learner.settings | default dict).task | default dict }}
{{- if and .Values.environment.enabled (not $task.path) }}
{{- printf "/checkpoints/environments/%s.jsonl" .Values.run }}
{{- end }}
{{- end }}

{{/* Where its modules lie, caches, and what the user adds. */}}
{{- define "asympo.environmentVariables" -}}
- name: HOME
  value: /tmp
- name: XDG_CACHE_HOME
  value: /cache
- name: HF_HOME
  value: /cache/huggingface
{{- with include "asympo.pythonPath" (dict "root" . "role" "environment") }}
- name: PYTHONPATH
  value: {{ . | toJson }}
{{- end }}
{{- end }}

{{/* The container that writes its rows down before the learner creates the run. .root is the chart, the rest the learner's. */}}
{{- define "asympo.writeRows" -}}
{{- $own := .root.Values.environment -}}
- name: write-rows
  image: {{ include "asympo.image" (dict "root" .root "image" $own.image "variant" "cpu") | toJson }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy | toJson }}
  {{- include "asympo.containerSecurityContext" .root | nindent 2 }}
  args:
    - environment
    - rows
    - /etc/asympo/settings/learner.toml
    {{- with $own.python }}
    - --python
    - {{ . | toJson }}
    {{- end }}
    {{- if .root.Values.evaluator.enabled }}
    - --hold-out
    {{- end }}
  {{- with include "asympo.envFrom" (dict "values" $own) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "asympo.variables" (dict "own" (include "asympo.environmentVariables" .root) "extra" $own.extraEnv) | nindent 2 }}
  {{- include "asympo.resources" (dict "resources" $own.resources "gpus" 0) | nindent 2 }}
  volumeMounts:
    - name: settings
      mountPath: /etc/asympo/settings
      readOnly: true
    - name: checkpoints
      mountPath: /checkpoints
    - name: temporary
      mountPath: /tmp
    - name: cache
      mountPath: /cache
    {{- with include "asympo.dataMounts" .root | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* A Python has to be within one of `data`, or in an image of the user's own. */}}
{{- define "asympo.refusePython" -}}
{{- if eq .image.repository "asympo-generator" }}
{{- include "asympo.refusePath" (dict "root" .root "values" dict "named" .named "setting" .setting "path" .path) }}
{{- end }}
{{- end }}

{{- define "asympo.refuseEnvironment" -}}
{{- $own := .Values.environment }}
{{- if $own.enabled }}
{{- $settings := include "asympo.learnerSettings" . | fromJson }}
{{- $task := $settings.task }}
{{- include "asympo.refuseResources" (dict "root" . "named" "environment" "values" (merge (dict "gpus" 0 "gpuResource" "nvidia.com/gpu") $own)) }}
{{- if not .Values.learner.enabled }}
{{- fail "environment.enabled is true and learner.enabled is false: what is played is the task of the learner's settings; set it in the learner's release" }}
{{- end }}
{{- if not (has $task.name (list "verifiers" "trl-environment")) }}
{{- fail (printf "environment.enabled is true and learner.settings.task.name is %s, which nobody has to play: set it to verifiers or trl-environment, or environment.enabled=false" $task.name) }}
{{- end }}
{{- if and (eq $task.name "verifiers") (not $own.python) }}
{{- fail "environment.python is empty: verifiers and the environment need a Python of their own; put it into one of data, and set environment.python to its path there, such as /data/environment/bin/python" }}
{{- end }}
{{- include "asympo.refusePython" (dict "root" . "image" $own.image "named" "environment" "setting" "environment.python" "path" $own.python) }}
{{- if .Values.evaluator.enabled }}
{{- include "asympo.refusePython" (dict "root" . "image" .Values.evaluator.image "named" "evaluator" "setting" "environment.python" "path" $own.python) }}
{{- end }}
{{- include "asympo.refusePath" (dict "root" . "values" dict "named" "environment" "setting" "learner.settings.task.environment_rows" "path" $task.environment_rows) }}
{{- if not .Values.gateway.enabled }}
{{- fail "environment.enabled is true and gateway.enabled is false: episodes are sessions of the gateway; set gateway.enabled=true" }}
{{- end }}
{{- if not (include "asympo.doors" . | fromJsonArray) }}
{{- fail "environment.enabled is true and the gateway has no doors: an environment asks the policy; set generator.settings.door, or gateway.settings.doors" }}
{{- end }}
{{- if not (and $own.tokenFrom.secret $own.tokenFrom.key) }}
{{- fail "environment.enabled is true and has no token: the gateway asks every producer for one; set environment.tokenFrom.secret and .key to the token of a producer with the scope sessions" }}
{{- end }}
{{- if lt (int $settings.max_staleness) 1 }}
{{- fail "learner.settings.max_staleness is 0 and environment.enabled is true: one slow episode would hold up the run; set it to 1 or more" }}
{{- end }}
{{- if and .Values.checkpoints.objectStore.url (include "asympo.environmentRows" .) }}
{{- fail "checkpoints.objectStore.url is set and learner.settings.task.path is not: the environment's rows would be on the learner's own volume; write them with asympo environment rows, and set learner.settings.task.path to the file in one of data" }}
{{- end }}
{{- end }}
{{- end }}
